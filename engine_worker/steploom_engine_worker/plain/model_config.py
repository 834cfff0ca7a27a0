"""config.pbtxt: read, held against every bound, and completed with what it leaves to defaults.

What Steploom does not do is refused where answers would differ without it, and passed over where only speed would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf import text_format

from steploom_engine_worker.plain.datatypes import DATATYPES
from steploom_engine_worker.plain.errors import BrokenModel
from steploom_engine_worker.plain.names import is_file_name
from steploom_engine_worker.plain.spec import fixed_size, words
from steploom_engine_worker.plain.warm_up_config import warm_up_problems
from steploom_protos.inference import model_config_pb2 as pb

CONFIG_FILE = "config.pbtxt"

PYTHON, TORCH = "python", "pytorch"
# The model's file, by backend; where there are several the first that exists.
FILES = {PYTHON: ("model.py",), TORCH: ("model.pt", "model.pt2")}

LIBTORCH = "pytorch_libtorch"  # the platform of TorchScript
_PLATFORMS = {"": "", LIBTORCH: TORCH}  # older words for a backend
_MAX_CONFIG_BYTES = 2**20
_MAX_NAME = 200  # characters
_MAX_DIMS = 16
_MAX_TENSORS = 256  # in, and out
_MAX_INSTANCES = 64  # of a group, on each GPU
_MAX_BATCH_SIZE = 2**16
_MAX_PRIORITY_LEVELS = 10_000

_UNSUPPORTED = ("batch_input", "batch_output", "cc_model_filenames")
_UNSUPPORTED_OF_INPUTS = ("is_shape_tensor", "allow_ragged_batch", "is_non_linear_format_io")
_UNSUPPORTED_OF_OUTPUTS = ("is_shape_tensor", "is_non_linear_format_io")
_UNSUPPORTED_OF_GROUPS = ("secondary_devices", "profile", "passive")

Tensors = Sequence[pb.ModelInput | pb.ModelOutput]


def read_config(folder: Path) -> pb.ModelConfig:
    """The config of a model's folder, as it is written.

    Raises:
        BrokenModel: the file cannot be read, or is no ModelConfig; names the line.
    """
    try:
        with (folder / CONFIG_FILE).open("rb") as file:
            text = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise BrokenModel(CONFIG_FILE, f"cannot be read: {error.strerror}") from None
    if len(text) > _MAX_CONFIG_BYTES:
        raise BrokenModel(CONFIG_FILE, f"has more than {_MAX_CONFIG_BYTES} bytes, must have at most that many")
    try:
        return text_format.Parse(text.decode(), pb.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BrokenModel(CONFIG_FILE, f"is no ModelConfig as text: {error}") from None


def completed(config: pb.ModelConfig, name: str) -> pb.ModelConfig:
    """A copy with what the config leaves to defaults, whatever its file is: see `with_file` for the rest.

    Args:
        config: as it was read.
        name: of the model's folder.

    Raises:
        BrokenModel: names every field that is out of its bound.
    """
    found = [problem for part in _CHECKS for problem in part(config)]
    if config.name not in ("", name):
        found.insert(0, f"name: is {config.name[:_MAX_NAME]!r}, must be that of the folder, {name!r}, or empty")
    if found:
        raise BrokenModel(CONFIG_FILE, "; ".join(found))
    full = pb.ModelConfig()
    full.CopyFrom(config)
    full.name = name
    full.backend = config.backend or _PLATFORMS[config.platform]
    if not config.HasField("version_policy"):
        full.version_policy.latest.num_versions = 1
    if not config.instance_group:
        full.instance_group.add()
    for number, group in enumerate(full.instance_group):
        group.name = group.name or f"{name}_{number}"
        group.count = group.count or 1
    return full


def _head(config: pb.ModelConfig) -> Iterator[str]:
    if config.platform not in _PLATFORMS:
        yield f"platform: is {config.platform[:_MAX_NAME]!r}, must be pytorch_libtorch or empty"
    elif config.backend not in ("", *FILES):
        yield f"backend: is {config.backend[:_MAX_NAME]!r}, must be {' or '.join(FILES)}"
    elif config.backend and _PLATFORMS[config.platform] not in ("", config.backend):
        yield f"platform: is {config.platform}, must be empty with the backend {config.backend}"
    if not 0 <= config.max_batch_size <= _MAX_BATCH_SIZE:
        yield f"max_batch_size: is {config.max_batch_size}, must be 0 to {_MAX_BATCH_SIZE}"
    if config.default_model_filename and not is_file_name(config.default_model_filename):
        yield "default_model_filename: must be the name of a file in the version's folder, without slashes"


def _unsupported(config: pb.ModelConfig) -> Iterator[str]:
    yield from (f"{field}: is not supported, must be empty" for field in _UNSUPPORTED if getattr(config, field))
    if config.model_transaction_policy.decoupled:
        yield "model_transaction_policy.decoupled: is not supported, must be false"
    if config.model_operations.op_library_filename:
        yield "model_operations.op_library_filename: is not supported, must be empty"
    if config.model_repository_agents.agents:
        yield "model_repository_agents.agents: is not supported, must be empty"
    choice = config.WhichOneof("scheduling_choice")
    if choice not in (None, "dynamic_batching"):
        yield f"{choice}: is not supported, must be dynamic_batching or none"


def _tensors(config: pb.ModelConfig) -> Iterator[str]:
    yield from _tensor_list("input", list(config.input), _UNSUPPORTED_OF_INPUTS)
    yield from _tensor_list("output", list(config.output), _UNSUPPORTED_OF_OUTPUTS)
    for at, item in enumerate(config.input):
        if item.format != pb.ModelInput.FORMAT_NONE and len(item.dims) != 3:
            yield f"input[{at}].dims: has {len(item.dims)} entries, must have 3 with a format"
    for at, output in enumerate(config.output):
        if output.label_filename and not is_file_name(output.label_filename):
            yield f"output[{at}].label_filename: must be the name of a file in the model's folder, without slashes"


def _tensor_list(field: str, items: Tensors, unsupported: Sequence[str]) -> Iterator[str]:
    if not 1 <= len(items) <= _MAX_TENSORS:
        yield f"{field}: has {len(items)} entries, must have 1 to {_MAX_TENSORS}"
    names = [item.name for item in items]
    for at, item in enumerate(items):
        path = f"{field}[{at}]"
        if not 1 <= len(item.name) <= _MAX_NAME:
            yield f"{path}.name: has {len(item.name)} characters, must have 1 to {_MAX_NAME}"
        elif item.name in names[:at]:
            yield f"{path}.name: {item.name!r} comes twice"
        if item.data_type not in DATATYPES:
            yield f"{path}.data_type: is {item.data_type}, must be one of {', '.join(_datatype_names())}"
        yield from (f"{path}.{name}: is not supported, must be false" for name in unsupported if getattr(item, name))
        yield from _dims(path, item)


def _dims(path: str, item: pb.ModelInput | pb.ModelOutput) -> Iterator[str]:
    dims = tuple(item.dims)
    if not 1 <= len(dims) <= _MAX_DIMS:
        yield f"{path}.dims: has {len(dims)} entries, must have 1 to {_MAX_DIMS}"
    elif not all(_is_dim(size) for size in dims):
        yield f"{path}.dims: is {words(dims)}, each must be -1 or 1 to 2^31"
    elif item.HasField("reshape"):
        yield from _reshape(path, dims, tuple(item.reshape.shape))


def _reshape(path: str, dims: tuple[int, ...], inner: tuple[int, ...]) -> Iterator[str]:
    if len(inner) > _MAX_DIMS or not all(_is_dim(size) for size in inner):
        yield f"{path}.reshape.shape: is {words(inner)}, must have at most {_MAX_DIMS} entries of -1 or 1 to 2^31"
    elif dims.count(-1) != inner.count(-1) or fixed_size(dims) != fixed_size(inner):
        yield f"{path}.reshape.shape: is {words(inner)}, must have as many elements as dims {words(dims)}"
    elif dims.count(-1) > 1:
        yield f"{path}.reshape.shape: is not supported where dims {words(dims)} have more than one -1"


def _groups(config: pb.ModelConfig) -> Iterator[str]:
    for at, group in enumerate(config.instance_group):
        path = f"instance_group[{at}]"
        if not 0 <= group.count <= _MAX_INSTANCES:
            yield f"{path}.count: is {group.count}, must be 0 to {_MAX_INSTANCES}"
        if group.kind not in pb.ModelInstanceGroup.Kind.values():
            yield f"{path}.kind: is {group.kind}, must be KIND_AUTO, KIND_GPU, KIND_CPU or KIND_MODEL"
        if group.gpus and group.kind not in (pb.ModelInstanceGroup.KIND_AUTO, pb.ModelInstanceGroup.KIND_GPU):
            yield f"{path}.gpus: is {words(tuple(group.gpus))}, must be empty but for KIND_GPU and KIND_AUTO"
        if any(number < 0 for number in group.gpus):
            yield f"{path}.gpus: is {words(tuple(group.gpus))}, each must be at least 0"
        yield from (
            f"{path}.{field}: is not supported, must be empty"
            for field in _UNSUPPORTED_OF_GROUPS
            if getattr(group, field)
        )


def _versions(config: pb.ModelConfig) -> Iterator[str]:
    policy = config.version_policy
    if policy.HasField("latest") and policy.latest.num_versions < 1:
        yield "version_policy.latest.num_versions: is 0, must be at least 1"
    if policy.HasField("specific"):
        versions = tuple(policy.specific.versions)
        if not versions or min(versions) < 1:
            yield f"version_policy.specific.versions: is {words(versions)}, must name versions from 1"


def _batching(config: pb.ModelConfig) -> Iterator[str]:
    batching = config.dynamic_batching
    for size in batching.preferred_batch_size:
        if not 1 <= size <= config.max_batch_size:
            yield (
                f"dynamic_batching.preferred_batch_size: has {size}, "
                f"each must be 1 to max_batch_size, {config.max_batch_size}"
            )
    levels = batching.priority_levels
    if levels > _MAX_PRIORITY_LEVELS:
        yield f"dynamic_batching.priority_levels: is {levels}, must be at most {_MAX_PRIORITY_LEVELS}"
    if levels and not 1 <= batching.default_priority_level <= levels:
        yield (
            f"dynamic_batching.default_priority_level: is {batching.default_priority_level}, "
            f"must be 1 to priority_levels, {levels}"
        )
    for level in sorted(batching.priority_queue_policy):
        if levels and not 1 <= level <= levels:
            yield f"dynamic_batching.priority_queue_policy: has {level}, each must be 1 to priority_levels, {levels}"


_CHECKS = (_head, _unsupported, _tensors, _groups, _versions, _batching, warm_up_problems)


def _is_dim(size: int) -> bool:
    return size == -1 or 1 <= size <= 2**31


def _datatype_names() -> list[str]:
    return [pb.DataType.Name(number) for number in DATATYPES]
