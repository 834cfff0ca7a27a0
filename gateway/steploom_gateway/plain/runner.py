"""Who runs requests for plain models: a queue of this gateway's own, or one that it shares with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from steploom_gateway.plain.model import PlainModel, plain_model
from steploom_gateway.plain.request import PlainOrder
from steploom_protos.batcher.v1 import plain_pb2 as batcher_pb
from steploom_protos.worker.v1 import plain_pb2 as host_pb


class Runner(Protocol):
    """Where requests go."""

    @property
    def models(self) -> Mapping[str, PlainModel]:
        """By name; the last known. A model stays the same object until it changes."""

    @property
    def is_up(self) -> bool:
        """Whether requests are taken."""

    @property
    def num_open(self) -> int:
        """Requests that are not answered."""

    async def run(self, model: str, version: int, order: PlainOrder, left_s: float) -> host_pb.ItemDone:
        """Runs one request. When this is cancelled, so is the request.

        Args:
            model: by name.
            version: of it.
            order: what is asked.
            left_s: until nobody waits for it any more; 0: no such time.

        Raises:
            SteploomError: it was refused, or has waited in vain.
        """

    async def statistics(self) -> batcher_pb.PlainStatistics:
        """Of all models that were asked for."""

    async def load(self, request: host_pb.LoadRequest) -> None:
        """Loads a model. Raises grpc.aio.AioRpcError where a host refuses."""

    async def unload(self, request: host_pb.UnloadRequest) -> None:
        """Unloads a model. Raises as `load`."""

    async def index(self) -> host_pb.IndexResponse:
        """All models of the repository. Raises as `load`."""

    def drain(self) -> None:
        """Takes no requests any more."""

    async def close(self) -> None:
        """Ends what is left."""


def updated(known: Mapping[str, PlainModel], hosted: Sequence[host_pb.HostedModel]) -> dict[str, PlainModel]:
    """What is served now; a model that has not changed stays the same object, with what was made for it."""
    models = {}
    for item in hosted:
        model = plain_model(item)
        models[model.name] = known[model.name] if known.get(model.name) == model else model
    return models
