from steploom_protos.worker.v1 import plain_pb2 as _plain_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PlainRequests(_message.Message):
    __slots__ = ("requests", "cancelled")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[PlainRequest]
    cancelled: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, requests: _Optional[_Iterable[_Union[PlainRequest, _Mapping]]] = ..., cancelled: _Optional[_Iterable[int]] = ...) -> None: ...

class PlainRequest(_message.Message):
    __slots__ = ("id", "model", "version", "rows", "key", "priority", "timeout_us", "left_s", "item")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_US_FIELD_NUMBER: _ClassVar[int]
    LEFT_S_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    id: int
    model: str
    version: int
    rows: int
    key: bytes
    priority: int
    timeout_us: int
    left_s: float
    item: _plain_pb2.Item
    def __init__(self, id: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., rows: _Optional[int] = ..., key: _Optional[bytes] = ..., priority: _Optional[int] = ..., timeout_us: _Optional[int] = ..., left_s: _Optional[float] = ..., item: _Optional[_Union[_plain_pb2.Item, _Mapping]] = ...) -> None: ...

class PlainAnswers(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[PlainAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[PlainAnswer, _Mapping]]] = ...) -> None: ...

class PlainAnswer(_message.Message):
    __slots__ = ("id", "done", "refused")
    ID_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    id: int
    done: _plain_pb2.ItemDone
    refused: PlainRefusal
    def __init__(self, id: _Optional[int] = ..., done: _Optional[_Union[_plain_pb2.ItemDone, _Mapping]] = ..., refused: _Optional[_Union[PlainRefusal, _Mapping]] = ...) -> None: ...

class PlainRefusal(_message.Message):
    __slots__ = ("kind", "message", "retry_after_s")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[PlainRefusal.Kind]
        QUEUE_FULL: _ClassVar[PlainRefusal.Kind]
        TIMEOUT: _ClassVar[PlainRefusal.Kind]
        UNAVAILABLE: _ClassVar[PlainRefusal.Kind]
        INVALID: _ClassVar[PlainRefusal.Kind]
        CANCELLED: _ClassVar[PlainRefusal.Kind]
    KIND_UNSPECIFIED: PlainRefusal.Kind
    QUEUE_FULL: PlainRefusal.Kind
    TIMEOUT: PlainRefusal.Kind
    UNAVAILABLE: PlainRefusal.Kind
    INVALID: PlainRefusal.Kind
    CANCELLED: PlainRefusal.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    kind: PlainRefusal.Kind
    message: str
    retry_after_s: float
    def __init__(self, kind: _Optional[_Union[PlainRefusal.Kind, str]] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class PlainModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PlainModels(_message.Message):
    __slots__ = ("models", "is_draining")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[_plain_pb2.HostedModel]
    is_draining: bool
    def __init__(self, models: _Optional[_Iterable[_Union[_plain_pb2.HostedModel, _Mapping]]] = ..., is_draining: _Optional[bool] = ...) -> None: ...

class PlainStatisticsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PlainStatistics(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[PlainModelStatistics]
    def __init__(self, models: _Optional[_Iterable[_Union[PlainModelStatistics, _Mapping]]] = ...) -> None: ...

class PlainModelStatistics(_message.Message):
    __slots__ = ("name", "version", "last_unix_ms", "rows", "batches", "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "by_rows", "ended", "queued")
    class EndedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    FAIL_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_INPUT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_INFER_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    BY_ROWS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    last_unix_ms: int
    rows: int
    batches: int
    success: PlainTime
    fail: PlainTime
    queue: PlainTime
    compute_input: PlainTime
    compute_infer: PlainTime
    compute_output: PlainTime
    by_rows: _containers.RepeatedCompositeFieldContainer[PlainBatchTimes]
    ended: _containers.ScalarMap[str, int]
    queued: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., last_unix_ms: _Optional[int] = ..., rows: _Optional[int] = ..., batches: _Optional[int] = ..., success: _Optional[_Union[PlainTime, _Mapping]] = ..., fail: _Optional[_Union[PlainTime, _Mapping]] = ..., queue: _Optional[_Union[PlainTime, _Mapping]] = ..., compute_input: _Optional[_Union[PlainTime, _Mapping]] = ..., compute_infer: _Optional[_Union[PlainTime, _Mapping]] = ..., compute_output: _Optional[_Union[PlainTime, _Mapping]] = ..., by_rows: _Optional[_Iterable[_Union[PlainBatchTimes, _Mapping]]] = ..., ended: _Optional[_Mapping[str, int]] = ..., queued: _Optional[int] = ...) -> None: ...

class PlainTime(_message.Message):
    __slots__ = ("count", "ns")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    NS_FIELD_NUMBER: _ClassVar[int]
    count: int
    ns: int
    def __init__(self, count: _Optional[int] = ..., ns: _Optional[int] = ...) -> None: ...

class PlainBatchTimes(_message.Message):
    __slots__ = ("rows", "compute_input", "compute_infer", "compute_output")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_INPUT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_INFER_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    rows: int
    compute_input: PlainTime
    compute_infer: PlainTime
    compute_output: PlainTime
    def __init__(self, rows: _Optional[int] = ..., compute_input: _Optional[_Union[PlainTime, _Mapping]] = ..., compute_infer: _Optional[_Union[PlainTime, _Mapping]] = ..., compute_output: _Optional[_Union[PlainTime, _Mapping]] = ...) -> None: ...
