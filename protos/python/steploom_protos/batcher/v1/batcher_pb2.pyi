from steploom_protos.v1 import image_pb2 as _image_pb2
from steploom_protos.worker.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_STATE_UNSPECIFIED: _ClassVar[AdapterState]
    ADAPTER_STATE_LOADING: _ClassVar[AdapterState]
    ADAPTER_STATE_READY: _ClassVar[AdapterState]
    ADAPTER_STATE_UNLOADING: _ClassVar[AdapterState]
    ADAPTER_STATE_UNAVAILABLE: _ClassVar[AdapterState]
ADAPTER_STATE_UNSPECIFIED: AdapterState
ADAPTER_STATE_LOADING: AdapterState
ADAPTER_STATE_READY: AdapterState
ADAPTER_STATE_UNLOADING: AdapterState
ADAPTER_STATE_UNAVAILABLE: AdapterState

class SubmitRequest(_message.Message):
    __slots__ = ("job_id", "tier", "model", "instruction", "pixels", "output", "steps", "guidance_scale", "image_guidance_scale", "seed", "sampler", "deadline_unix_s", "preview_every", "adapter", "without_progress", "caller")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    tier: str
    model: str
    instruction: str
    pixels: _worker_pb2.Pixels
    output: _worker_pb2.Region
    steps: int
    guidance_scale: float
    image_guidance_scale: float
    seed: int
    sampler: _image_pb2.Sampler
    deadline_unix_s: float
    preview_every: int
    adapter: str
    without_progress: bool
    caller: str
    def __init__(self, job_id: _Optional[str] = ..., tier: _Optional[str] = ..., model: _Optional[str] = ..., instruction: _Optional[str] = ..., pixels: _Optional[_Union[_worker_pb2.Pixels, _Mapping]] = ..., output: _Optional[_Union[_worker_pb2.Region, _Mapping]] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., image_guidance_scale: _Optional[float] = ..., seed: _Optional[int] = ..., sampler: _Optional[_Union[_image_pb2.Sampler, str]] = ..., deadline_unix_s: _Optional[float] = ..., preview_every: _Optional[int] = ..., adapter: _Optional[str] = ..., without_progress: _Optional[bool] = ..., caller: _Optional[str] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("admitted", "started", "step", "finished")
    class Admitted(_message.Message):
        __slots__ = ("predicted_s", "steps", "tier", "model", "adapter")
        PREDICTED_S_FIELD_NUMBER: _ClassVar[int]
        STEPS_FIELD_NUMBER: _ClassVar[int]
        TIER_FIELD_NUMBER: _ClassVar[int]
        MODEL_FIELD_NUMBER: _ClassVar[int]
        ADAPTER_FIELD_NUMBER: _ClassVar[int]
        predicted_s: float
        steps: int
        tier: str
        model: str
        adapter: str
        def __init__(self, predicted_s: _Optional[float] = ..., steps: _Optional[int] = ..., tier: _Optional[str] = ..., model: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...
    class Started(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Step(_message.Message):
        __slots__ = ("step", "steps", "preview")
        STEP_FIELD_NUMBER: _ClassVar[int]
        STEPS_FIELD_NUMBER: _ClassVar[int]
        PREVIEW_FIELD_NUMBER: _ClassVar[int]
        step: int
        steps: int
        preview: _worker_pb2.Pixels
        def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., preview: _Optional[_Union[_worker_pb2.Pixels, _Mapping]] = ...) -> None: ...
    class Finished(_message.Message):
        __slots__ = ("pixels", "timings")
        PIXELS_FIELD_NUMBER: _ClassVar[int]
        TIMINGS_FIELD_NUMBER: _ClassVar[int]
        pixels: _worker_pb2.Pixels
        timings: _image_pb2.Timings
        def __init__(self, pixels: _Optional[_Union[_worker_pb2.Pixels, _Mapping]] = ..., timings: _Optional[_Union[_image_pb2.Timings, _Mapping]] = ...) -> None: ...
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    admitted: JobEvent.Admitted
    started: JobEvent.Started
    step: JobEvent.Step
    finished: JobEvent.Finished
    def __init__(self, admitted: _Optional[_Union[JobEvent.Admitted, _Mapping]] = ..., started: _Optional[_Union[JobEvent.Started, _Mapping]] = ..., step: _Optional[_Union[JobEvent.Step, _Mapping]] = ..., finished: _Optional[_Union[JobEvent.Finished, _Mapping]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("was_alive",)
    WAS_ALIVE_FIELD_NUMBER: _ClassVar[int]
    was_alive: bool
    def __init__(self, was_alive: _Optional[bool] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AdapterRequest(_message.Message):
    __slots__ = ("model", "name")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class AdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AdapterStatus(_message.Message):
    __slots__ = ("name", "state", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: AdapterState
    reason: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[AdapterState, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("model", "tiers", "workers", "ticks", "rows", "mean_rows_per_tick", "finished", "failed", "cancelled", "refused", "is_draining", "policy", "submitted", "padding_rows", "expired", "batcher_cpu_s", "adapters")
    class Tier(_message.Message):
        __slots__ = ("name", "queued", "running", "max_queued", "weight")
        NAME_FIELD_NUMBER: _ClassVar[int]
        QUEUED_FIELD_NUMBER: _ClassVar[int]
        RUNNING_FIELD_NUMBER: _ClassVar[int]
        MAX_QUEUED_FIELD_NUMBER: _ClassVar[int]
        WEIGHT_FIELD_NUMBER: _ClassVar[int]
        name: str
        queued: int
        running: int
        max_queued: int
        weight: float
        def __init__(self, name: _Optional[str] = ..., queued: _Optional[int] = ..., running: _Optional[int] = ..., max_queued: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...
    class StageUse(_message.Message):
        __slots__ = ("stage", "ticks", "busy_s", "rows", "padding")
        STAGE_FIELD_NUMBER: _ClassVar[int]
        TICKS_FIELD_NUMBER: _ClassVar[int]
        BUSY_S_FIELD_NUMBER: _ClassVar[int]
        ROWS_FIELD_NUMBER: _ClassVar[int]
        PADDING_FIELD_NUMBER: _ClassVar[int]
        stage: _worker_pb2.Stage
        ticks: int
        busy_s: float
        rows: int
        padding: int
        def __init__(self, stage: _Optional[_Union[_worker_pb2.Stage, str]] = ..., ticks: _Optional[int] = ..., busy_s: _Optional[float] = ..., rows: _Optional[int] = ..., padding: _Optional[int] = ...) -> None: ...
    class GapBucket(_message.Message):
        __slots__ = ("at_most_s", "count")
        AT_MOST_S_FIELD_NUMBER: _ClassVar[int]
        COUNT_FIELD_NUMBER: _ClassVar[int]
        at_most_s: float
        count: int
        def __init__(self, at_most_s: _Optional[float] = ..., count: _Optional[int] = ...) -> None: ...
    class WorkerStatus(_message.Message):
        __slots__ = ("address", "is_up", "slots", "slots_used", "ticks_in_flight", "engine", "last_error", "stages", "denoise_gaps", "progress", "memory", "idle_s", "costs", "is_leaving")
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        IS_UP_FIELD_NUMBER: _ClassVar[int]
        SLOTS_FIELD_NUMBER: _ClassVar[int]
        SLOTS_USED_FIELD_NUMBER: _ClassVar[int]
        TICKS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
        ENGINE_FIELD_NUMBER: _ClassVar[int]
        LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
        STAGES_FIELD_NUMBER: _ClassVar[int]
        DENOISE_GAPS_FIELD_NUMBER: _ClassVar[int]
        PROGRESS_FIELD_NUMBER: _ClassVar[int]
        MEMORY_FIELD_NUMBER: _ClassVar[int]
        IDLE_S_FIELD_NUMBER: _ClassVar[int]
        COSTS_FIELD_NUMBER: _ClassVar[int]
        IS_LEAVING_FIELD_NUMBER: _ClassVar[int]
        address: str
        is_up: bool
        slots: int
        slots_used: int
        ticks_in_flight: int
        engine: str
        last_error: str
        stages: _containers.RepeatedCompositeFieldContainer[StatusResponse.StageUse]
        denoise_gaps: _containers.RepeatedCompositeFieldContainer[StatusResponse.GapBucket]
        progress: _worker_pb2.Progress
        memory: _worker_pb2.Memory
        idle_s: float
        costs: _containers.RepeatedCompositeFieldContainer[_worker_pb2.BucketCost]
        is_leaving: bool
        def __init__(self, address: _Optional[str] = ..., is_up: _Optional[bool] = ..., slots: _Optional[int] = ..., slots_used: _Optional[int] = ..., ticks_in_flight: _Optional[int] = ..., engine: _Optional[str] = ..., last_error: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StatusResponse.StageUse, _Mapping]]] = ..., denoise_gaps: _Optional[_Iterable[_Union[StatusResponse.GapBucket, _Mapping]]] = ..., progress: _Optional[_Union[_worker_pb2.Progress, _Mapping]] = ..., memory: _Optional[_Union[_worker_pb2.Memory, _Mapping]] = ..., idle_s: _Optional[float] = ..., costs: _Optional[_Iterable[_Union[_worker_pb2.BucketCost, _Mapping]]] = ..., is_leaving: _Optional[bool] = ...) -> None: ...
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    TICKS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MEAN_ROWS_PER_TICK_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    PADDING_ROWS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    BATCHER_CPU_S_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    model: _worker_pb2.ModelInfo
    tiers: _containers.RepeatedCompositeFieldContainer[StatusResponse.Tier]
    workers: _containers.RepeatedCompositeFieldContainer[StatusResponse.WorkerStatus]
    ticks: int
    rows: int
    mean_rows_per_tick: float
    finished: int
    failed: int
    cancelled: int
    refused: _containers.ScalarMap[str, int]
    is_draining: bool
    policy: str
    submitted: int
    padding_rows: float
    expired: int
    batcher_cpu_s: float
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterStatus]
    def __init__(self, model: _Optional[_Union[_worker_pb2.ModelInfo, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[StatusResponse.Tier, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[StatusResponse.WorkerStatus, _Mapping]]] = ..., ticks: _Optional[int] = ..., rows: _Optional[int] = ..., mean_rows_per_tick: _Optional[float] = ..., finished: _Optional[int] = ..., failed: _Optional[int] = ..., cancelled: _Optional[int] = ..., refused: _Optional[_Mapping[str, int]] = ..., is_draining: _Optional[bool] = ..., policy: _Optional[str] = ..., submitted: _Optional[int] = ..., padding_rows: _Optional[float] = ..., expired: _Optional[int] = ..., batcher_cpu_s: _Optional[float] = ..., adapters: _Optional[_Iterable[_Union[AdapterStatus, _Mapping]]] = ...) -> None: ...

class MetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MetricsResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class TicksRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class TicksResponse(_message.Message):
    __slots__ = ("ticks", "last", "lost")
    class Part(_message.Message):
        __slots__ = ("job_id", "rows", "step")
        JOB_ID_FIELD_NUMBER: _ClassVar[int]
        ROWS_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        job_id: str
        rows: int
        step: int
        def __init__(self, job_id: _Optional[str] = ..., rows: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...
    class RanTick(_message.Message):
        __slots__ = ("worker", "stage", "status", "start_unix_s", "seconds", "rows", "bucket", "parts")
        WORKER_FIELD_NUMBER: _ClassVar[int]
        STAGE_FIELD_NUMBER: _ClassVar[int]
        STATUS_FIELD_NUMBER: _ClassVar[int]
        START_UNIX_S_FIELD_NUMBER: _ClassVar[int]
        SECONDS_FIELD_NUMBER: _ClassVar[int]
        ROWS_FIELD_NUMBER: _ClassVar[int]
        BUCKET_FIELD_NUMBER: _ClassVar[int]
        PARTS_FIELD_NUMBER: _ClassVar[int]
        worker: str
        stage: _worker_pb2.Stage
        status: _worker_pb2.TickStatus
        start_unix_s: float
        seconds: float
        rows: int
        bucket: int
        parts: _containers.RepeatedCompositeFieldContainer[TicksResponse.Part]
        def __init__(self, worker: _Optional[str] = ..., stage: _Optional[_Union[_worker_pb2.Stage, str]] = ..., status: _Optional[_Union[_worker_pb2.TickStatus, str]] = ..., start_unix_s: _Optional[float] = ..., seconds: _Optional[float] = ..., rows: _Optional[int] = ..., bucket: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[TicksResponse.Part, _Mapping]]] = ...) -> None: ...
    TICKS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    ticks: _containers.RepeatedCompositeFieldContainer[TicksResponse.RanTick]
    last: int
    lost: int
    def __init__(self, ticks: _Optional[_Iterable[_Union[TicksResponse.RanTick, _Mapping]]] = ..., last: _Optional[int] = ..., lost: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("unfinished",)
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    unfinished: int
    def __init__(self, unfinished: _Optional[int] = ...) -> None: ...
