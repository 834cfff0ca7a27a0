"""The diffusion pipeline in the model repository: a model, its steps, and its adapters as models of their own."""

from __future__ import annotations

from collections.abc import Sequence

from steploom_common.errors import FailedPrecondition
from steploom_gateway.batcher_client import BatcherClient
from steploom_gateway.oip.names import names
from steploom_gateway.oip.repository import Entry, State
from steploom_gateway.service import ImageService


class Pipeline:
    """See `repository.Keeper`.

    Args:
        batcher: what it serves.
        images: whether edits are taken.
    """

    def __init__(self, batcher: BatcherClient, images: ImageService) -> None:
        self._batcher = batcher
        self._images = images

    def keeps(self, name: str) -> bool:
        """The pipeline's own name and those of its steps."""
        catalogue = self._batcher.catalogue
        return catalogue is not None and name in names(catalogue.model)

    async def entries(self) -> Sequence[Entry]:
        """The pipeline and its steps: all are ready, or none is; nothing before a worker has been up."""
        catalogue = self._batcher.catalogue
        if catalogue is None:
            return []
        state, reason = State.READY, ""
        if not self._images.is_ready:
            state, reason = State.UNAVAILABLE, "no worker is up, or the service drains"
        return [Entry(name, state, reason) for name in names(catalogue.model)]

    async def load(self, name: str) -> None:
        """Refused."""
        raise FailedPrecondition(f"{name} is loaded by its engine workers when they start, from worker.model")

    async def unload(self, name: str) -> None:
        """Refused."""
        raise FailedPrecondition(f"{name} is unloaded when its engine workers end")
