"""The plain models that a batcher knows of, as `steploom up` and `steploom status` show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from steploom_common.rpc import INTERNAL_OPTIONS
from steploom_protos.batcher.v1 import plain_pb2
from steploom_protos.batcher.v1.plain_pb2_grpc import PlainBatcherStub
from steploom_protos.worker.v1 import plain_pb2 as host_pb

_MAX_NAMES = 8  # in a line


@dataclass(frozen=True)
class ModelLine:
    """One version of a model, or a model of which none is served."""

    name: str
    version: str  # empty: none
    state: str  # ready, loading, unloading, unavailable
    reason: str


def plain_models(batcher: str, timeout_s: float) -> list[ModelLine]:
    """By name and version; none where there are none, or the batcher cannot be reached.

    Args:
        batcher: its address.
        timeout_s: for its answer.
    """
    with grpc.insecure_channel(batcher, INTERNAL_OPTIONS) as channel:
        stub = PlainBatcherStub(channel)
        try:
            index = stub.Index(host_pb.IndexRequest(), timeout=timeout_s)
            return [_line(entry.name, entry.version, entry.state, entry.reason) for entry in index.entries]
        except grpc.RpcError:
            return _last_known(stub, timeout_s)


def ready_words(models: Sequence[ModelLine], address: str) -> str:
    """What of them can be called, in a line.

    Args:
        models: all that there are.
        address: of the gateway, for clients.
    """
    names = list(dict.fromkeys(model.name for model in models if model.state == "ready"))
    others = len({model.name for model in models} - set(names))
    more = f"; not ready: {others}, see steploom status" if others else ""
    if not names:
        return f"Open Inference Protocol at {address}: no model is ready yet{more}"
    shown = ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
    return f"Open Inference Protocol at {address}: {shown}{more}"


def _last_known(stub: PlainBatcherStub, timeout_s: float) -> list[ModelLine]:
    """While no host is up: what was served before."""
    lines = []
    try:
        known = next(iter(stub.Models(plain_pb2.PlainModelsRequest(), timeout=timeout_s)))
    except (grpc.RpcError, StopIteration):
        return []
    for model in known.models:
        is_away = model.state == host_pb.MODEL_STATE_READY and not model.instances
        state = host_pb.MODEL_STATE_UNAVAILABLE if is_away else model.state
        for version in model.versions or (0,):
            lines.append(_line(model.name, version, state, "its host is away" if is_away else model.reason))
    return lines


def _line(name: str, version: int, state: int, reason: str) -> ModelLine:
    words = host_pb.ModelState.Name(state).removeprefix("MODEL_STATE_").lower()
    return ModelLine(name, str(version) if version else "", words, reason)
