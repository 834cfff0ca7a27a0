from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]
    IMAGE_FORMAT_RAW: _ClassVar[ImageFormat]

class SizeRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIZE_RULE_UNSPECIFIED: _ClassVar[SizeRule]
    SIZE_RULE_CROP: _ClassVar[SizeRule]
    SIZE_RULE_PAD: _ClassVar[SizeRule]
    SIZE_RULE_STRETCH: _ClassVar[SizeRule]

class Sampler(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLER_UNSPECIFIED: _ClassVar[Sampler]
    SAMPLER_DDIM: _ClassVar[Sampler]
    SAMPLER_EULER: _ClassVar[Sampler]
    SAMPLER_DPMPP_2M: _ClassVar[Sampler]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
IMAGE_FORMAT_RAW: ImageFormat
SIZE_RULE_UNSPECIFIED: SizeRule
SIZE_RULE_CROP: SizeRule
SIZE_RULE_PAD: SizeRule
SIZE_RULE_STRETCH: SizeRule
SAMPLER_UNSPECIFIED: Sampler
SAMPLER_DDIM: Sampler
SAMPLER_EULER: Sampler
SAMPLER_DPMPP_2M: Sampler

class RawImage(_message.Message):
    __slots__ = ("data", "height", "width")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    height: int
    width: int
    def __init__(self, data: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("encoded", "tensor")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    tensor: RawImage
    def __init__(self, encoded: _Optional[bytes] = ..., tensor: _Optional[_Union[RawImage, _Mapping]] = ...) -> None: ...

class EditRequest(_message.Message):
    __slots__ = ("image", "instruction", "tier", "model", "steps", "guidance_scale", "image_guidance_scale", "seed", "output_format", "size_rule", "sampler", "preview_every", "request_id", "adapter", "conditioning")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    SIZE_RULE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    image: Image
    instruction: str
    tier: str
    model: str
    steps: int
    guidance_scale: float
    image_guidance_scale: float
    seed: int
    output_format: ImageFormat
    size_rule: SizeRule
    sampler: Sampler
    preview_every: int
    request_id: str
    adapter: str
    conditioning: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., instruction: _Optional[str] = ..., tier: _Optional[str] = ..., model: _Optional[str] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., image_guidance_scale: _Optional[float] = ..., seed: _Optional[int] = ..., output_format: _Optional[_Union[ImageFormat, str]] = ..., size_rule: _Optional[_Union[SizeRule, str]] = ..., sampler: _Optional[_Union[Sampler, str]] = ..., preview_every: _Optional[int] = ..., request_id: _Optional[str] = ..., adapter: _Optional[str] = ..., conditioning: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_s", "encode_s", "denoise_s", "decode_s", "total_s", "ticks", "mean_rows_per_tick")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    ENCODE_S_FIELD_NUMBER: _ClassVar[int]
    DENOISE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    TICKS_FIELD_NUMBER: _ClassVar[int]
    MEAN_ROWS_PER_TICK_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    encode_s: float
    denoise_s: float
    decode_s: float
    total_s: float
    ticks: int
    mean_rows_per_tick: float
    def __init__(self, queue_s: _Optional[float] = ..., encode_s: _Optional[float] = ..., denoise_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., total_s: _Optional[float] = ..., ticks: _Optional[int] = ..., mean_rows_per_tick: _Optional[float] = ...) -> None: ...

class EditResponse(_message.Message):
    __slots__ = ("image", "format", "height", "width", "seed", "timings", "request_id", "model", "tier", "adapter")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    image: Image
    format: ImageFormat
    height: int
    width: int
    seed: int
    timings: Timings
    request_id: str
    model: str
    tier: str
    adapter: str
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., format: _Optional[_Union[ImageFormat, str]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., seed: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., request_id: _Optional[str] = ..., model: _Optional[str] = ..., tier: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class EditEvent(_message.Message):
    __slots__ = ("queued", "started", "step", "done")
    class Queued(_message.Message):
        __slots__ = ("request_id", "predicted_s")
        REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
        PREDICTED_S_FIELD_NUMBER: _ClassVar[int]
        request_id: str
        predicted_s: float
        def __init__(self, request_id: _Optional[str] = ..., predicted_s: _Optional[float] = ...) -> None: ...
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
        preview: Image
        def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., preview: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    queued: EditEvent.Queued
    started: EditEvent.Started
    step: EditEvent.Step
    done: EditResponse
    def __init__(self, queued: _Optional[_Union[EditEvent.Queued, _Mapping]] = ..., started: _Optional[_Union[EditEvent.Started, _Mapping]] = ..., step: _Optional[_Union[EditEvent.Step, _Mapping]] = ..., done: _Optional[_Union[EditResponse, _Mapping]] = ...) -> None: ...
