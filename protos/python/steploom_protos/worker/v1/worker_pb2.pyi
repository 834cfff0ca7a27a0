from steploom_protos.v1 import image_pb2 as _image_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_ENCODE: _ClassVar[Stage]
    STAGE_DENOISE: _ClassVar[Stage]
    STAGE_DECODE: _ClassVar[Stage]

class TickStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TICK_STATUS_UNSPECIFIED: _ClassVar[TickStatus]
    TICK_STATUS_OK: _ClassVar[TickStatus]
    TICK_STATUS_FAILED: _ClassVar[TickStatus]
    TICK_STATUS_SKIPPED: _ClassVar[TickStatus]
STAGE_UNSPECIFIED: Stage
STAGE_ENCODE: Stage
STAGE_DENOISE: Stage
STAGE_DECODE: Stage
TICK_STATUS_UNSPECIFIED: TickStatus
TICK_STATUS_OK: TickStatus
TICK_STATUS_FAILED: TickStatus
TICK_STATUS_SKIPPED: TickStatus

class Region(_message.Message):
    __slots__ = ("path", "offset", "size", "lease")
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    path: str
    offset: int
    size: int
    lease: int
    def __init__(self, path: _Optional[str] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ..., lease: _Optional[int] = ...) -> None: ...

class Pixels(_message.Message):
    __slots__ = ("height", "width", "inline", "region")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    inline: bytes
    region: Region
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., inline: _Optional[bytes] = ..., region: _Optional[_Union[Region, _Mapping]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("admit", "tick", "release", "load_adapter", "drop_adapter", "more")
    ADMIT_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    LOAD_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    DROP_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    admit: Admit
    tick: Tick
    release: Release
    load_adapter: LoadAdapter
    drop_adapter: DropAdapter
    more: _containers.RepeatedCompositeFieldContainer[Command]
    def __init__(self, admit: _Optional[_Union[Admit, _Mapping]] = ..., tick: _Optional[_Union[Tick, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., load_adapter: _Optional[_Union[LoadAdapter, _Mapping]] = ..., drop_adapter: _Optional[_Union[DropAdapter, _Mapping]] = ..., more: _Optional[_Iterable[_Union[Command, _Mapping]]] = ...) -> None: ...

class Admit(_message.Message):
    __slots__ = ("job_id", "slot", "instruction", "pixels", "output", "steps", "guidance_scale", "image_guidance_scale", "seed", "sampler", "preview_every", "adapter", "adapter_digest", "traceparent")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    slot: int
    instruction: str
    pixels: Pixels
    output: Region
    steps: int
    guidance_scale: float
    image_guidance_scale: float
    seed: int
    sampler: _image_pb2.Sampler
    preview_every: int
    adapter: str
    adapter_digest: str
    traceparent: str
    def __init__(self, job_id: _Optional[str] = ..., slot: _Optional[int] = ..., instruction: _Optional[str] = ..., pixels: _Optional[_Union[Pixels, _Mapping]] = ..., output: _Optional[_Union[Region, _Mapping]] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., image_guidance_scale: _Optional[float] = ..., seed: _Optional[int] = ..., sampler: _Optional[_Union[_image_pb2.Sampler, str]] = ..., preview_every: _Optional[int] = ..., adapter: _Optional[str] = ..., adapter_digest: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Tick(_message.Message):
    __slots__ = ("tick_id", "stage", "bucket", "slots", "steps")
    TICK_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    tick_id: int
    stage: Stage
    bucket: int
    slots: _containers.RepeatedScalarFieldContainer[int]
    steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tick_id: _Optional[int] = ..., stage: _Optional[_Union[Stage, str]] = ..., bucket: _Optional[int] = ..., slots: _Optional[_Iterable[int]] = ..., steps: _Optional[_Iterable[int]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("slot",)
    SLOT_FIELD_NUMBER: _ClassVar[int]
    slot: int
    def __init__(self, slot: _Optional[int] = ...) -> None: ...

class LoadAdapter(_message.Message):
    __slots__ = ("change_id", "name", "at_once")
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    change_id: int
    name: str
    at_once: bool
    def __init__(self, change_id: _Optional[int] = ..., name: _Optional[str] = ..., at_once: _Optional[bool] = ...) -> None: ...

class DropAdapter(_message.Message):
    __slots__ = ("change_id", "name", "digest")
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    change_id: int
    name: str
    digest: str
    def __init__(self, change_id: _Optional[int] = ..., name: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class AdapterChanged(_message.Message):
    __slots__ = ("change_id", "error", "is_missing", "digest", "adapters", "memory")
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    IS_MISSING_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    change_id: int
    error: str
    is_missing: bool
    digest: str
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    memory: Memory
    def __init__(self, change_id: _Optional[int] = ..., error: _Optional[str] = ..., is_missing: _Optional[bool] = ..., digest: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., memory: _Optional[_Union[Memory, _Mapping]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("ready", "tick_done", "prepared", "leaving", "preparing", "adapter_changed")
    READY_FIELD_NUMBER: _ClassVar[int]
    TICK_DONE_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    PREPARING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_CHANGED_FIELD_NUMBER: _ClassVar[int]
    ready: Ready
    tick_done: TickDone
    prepared: Prepared
    leaving: Leaving
    preparing: Preparing
    adapter_changed: AdapterChanged
    def __init__(self, ready: _Optional[_Union[Ready, _Mapping]] = ..., tick_done: _Optional[_Union[TickDone, _Mapping]] = ..., prepared: _Optional[_Union[Prepared, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ..., preparing: _Optional[_Union[Preparing, _Mapping]] = ..., adapter_changed: _Optional[_Union[AdapterChanged, _Mapping]] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Preparing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "max_steps", "is_guidance_distilled", "min_guidance_scale", "max_guidance_scale", "min_image_guidance_scale", "max_image_guidance_scale", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    IS_GUIDANCE_DISTILLED_FIELD_NUMBER: _ClassVar[int]
    MIN_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    MAX_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    MIN_IMAGE_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    max_steps: int
    is_guidance_distilled: bool
    min_guidance_scale: float
    max_guidance_scale: float
    min_image_guidance_scale: float
    max_image_guidance_scale: float
    digest: str
    def __init__(self, name: _Optional[str] = ..., max_steps: _Optional[int] = ..., is_guidance_distilled: _Optional[bool] = ..., min_guidance_scale: _Optional[float] = ..., max_guidance_scale: _Optional[float] = ..., min_image_guidance_scale: _Optional[float] = ..., max_image_guidance_scale: _Optional[float] = ..., digest: _Optional[str] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "height", "width", "max_steps", "default_guidance_scale", "default_image_guidance_scale", "default_sampler", "adapters", "latent_shape", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_IMAGE_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SAMPLER_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    height: int
    width: int
    max_steps: int
    default_guidance_scale: float
    default_image_guidance_scale: float
    default_sampler: _image_pb2.Sampler
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    latent_shape: _containers.RepeatedScalarFieldContainer[int]
    digest: str
    def __init__(self, name: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., max_steps: _Optional[int] = ..., default_guidance_scale: _Optional[float] = ..., default_image_guidance_scale: _Optional[float] = ..., default_sampler: _Optional[_Union[_image_pb2.Sampler, str]] = ..., adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., latent_shape: _Optional[_Iterable[int]] = ..., digest: _Optional[str] = ...) -> None: ...

class BucketCost(_message.Message):
    __slots__ = ("stage", "bucket", "seconds")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    bucket: int
    seconds: float
    def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., bucket: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class Prepared(_message.Message):
    __slots__ = ("costs", "progress", "memory")
    COSTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    costs: _containers.RepeatedCompositeFieldContainer[BucketCost]
    progress: Progress
    memory: Memory
    def __init__(self, costs: _Optional[_Iterable[_Union[BucketCost, _Mapping]]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., memory: _Optional[_Union[Memory, _Mapping]] = ...) -> None: ...

class Memory(_message.Message):
    __slots__ = ("total_bytes", "free_bytes", "slots_bytes", "weights_bytes")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    free_bytes: int
    slots_bytes: int
    weights_bytes: int
    def __init__(self, total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., slots_bytes: _Optional[int] = ..., weights_bytes: _Optional[int] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("worker_id", "engine", "device", "slots", "model", "costs", "progress", "memory")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    engine: str
    device: str
    slots: int
    model: ModelInfo
    costs: _containers.RepeatedCompositeFieldContainer[BucketCost]
    progress: Progress
    memory: Memory
    def __init__(self, worker_id: _Optional[str] = ..., engine: _Optional[str] = ..., device: _Optional[str] = ..., slots: _Optional[int] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., costs: _Optional[_Iterable[_Union[BucketCost, _Mapping]]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., memory: _Optional[_Union[Memory, _Mapping]] = ...) -> None: ...

class TickDone(_message.Message):
    __slots__ = ("tick_id", "status", "seconds", "error", "pixels", "start_unix_s", "failures", "idle_s")
    TICK_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    START_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    tick_id: int
    status: TickStatus
    seconds: float
    error: str
    pixels: _containers.RepeatedCompositeFieldContainer[SlotPixels]
    start_unix_s: float
    failures: _containers.RepeatedCompositeFieldContainer[SlotFailure]
    idle_s: float
    def __init__(self, tick_id: _Optional[int] = ..., status: _Optional[_Union[TickStatus, str]] = ..., seconds: _Optional[float] = ..., error: _Optional[str] = ..., pixels: _Optional[_Iterable[_Union[SlotPixels, _Mapping]]] = ..., start_unix_s: _Optional[float] = ..., failures: _Optional[_Iterable[_Union[SlotFailure, _Mapping]]] = ..., idle_s: _Optional[float] = ...) -> None: ...

class SlotFailure(_message.Message):
    __slots__ = ("slot", "error")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    slot: int
    error: str
    def __init__(self, slot: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class SlotPixels(_message.Message):
    __slots__ = ("slot", "pixels")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    slot: int
    pixels: Pixels
    def __init__(self, slot: _Optional[int] = ..., pixels: _Optional[_Union[Pixels, _Mapping]] = ...) -> None: ...
