"""`instance_group` of config.pbtxt becomes a place for each instance."""

from __future__ import annotations

from collections.abc import Iterator

from steploom_engine_worker.plain.errors import BrokenModel
from steploom_engine_worker.plain.model_config import CONFIG_FILE, PYTHON
from steploom_engine_worker.plain.spec import Placement
from steploom_protos.inference import model_config_pb2 as pb

_Kind = pb.ModelInstanceGroup


def placements(config: pb.ModelConfig, backend: str) -> list[Placement]:
    """Where the instances of each version run, in the order of their groups. Loads torch where that must find GPUs.

    Raises:
        BrokenModel: a group asks for a GPU, and there is none.
    """
    return [place for at in range(len(config.instance_group)) for place in _group(config, at, backend)]


def _group(config: pb.ModelConfig, at: int, backend: str) -> Iterator[Placement]:
    group = config.instance_group[at]
    gpus = list(group.gpus) or _gpus(group, f"instance_group[{at}]", backend)
    for _ in range(group.count):
        if gpus:
            yield from (Placement(_Kind.KIND_GPU, number) for number in gpus)
        else:
            yield Placement(_Kind.KIND_MODEL if group.kind == _Kind.KIND_MODEL else _Kind.KIND_CPU)


def _gpus(group: pb.ModelInstanceGroup, path: str, backend: str) -> list[int]:
    """Those of a group that names none."""
    if group.kind not in (_Kind.KIND_GPU, _Kind.KIND_AUTO):
        return []
    if backend == PYTHON:  # nobody else knows of GPUs, and what it does with them is its own matter
        if group.kind == _Kind.KIND_GPU:
            raise BrokenModel(CONFIG_FILE, f"{path}.gpus: is empty, must be given for KIND_GPU of a Python class")
        return []
    count = _num_gpus()
    if group.kind == _Kind.KIND_GPU and not count:
        raise BrokenModel(CONFIG_FILE, f"{path}.kind: is KIND_GPU, and there is no GPU that torch can use")
    return list(range(count))


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
