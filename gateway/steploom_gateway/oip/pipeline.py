"""The diffusion pipeline in the model repository: a model, its steps, and its adapters as models of their own."""

from __future__ import annotations

from collections.abc import Sequence

from steploom_common.errors import FailedPrecondition
from steploom_gateway.batcher_client import BatcherClient
from steploom_gateway.catalogue import Catalogue
from steploom_gateway.oip.names import adapter_name, names
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

    def is_ready(self, name: str) -> bool:
        """Whether a request for a name is likely to be taken."""
        catalogue = self._batcher.catalogue
        return catalogue is not None and any(
            entry.name == name and entry.state is State.READY for entry in self._entries(catalogue)
        )

    def keeps(self, name: str) -> bool:
        """The pipeline's own name, those of its steps, and whatever could be an adapter's."""
        catalogue = self._batcher.catalogue
        return catalogue is not None and (name in names(catalogue.model) or bool(_adapter_of(catalogue, name)))

    async def entries(self) -> Sequence[Entry]:
        """The pipeline, its steps and its adapters; nothing before a worker has been up."""
        catalogue = await self._batcher.latest()
        return self._entries(catalogue) if catalogue is not None else []

    async def load(self, name: str) -> None:
        """Loads an adapter into every worker; the pipeline itself is the workers' to load.

        Raises:
            SteploomError: it is not loaded; the message says why.
        """
        model, adapter = self._adapter(name, "loaded by its engine workers when they start, from worker.model")
        await self._batcher.load_adapter(model, adapter)

    async def unload(self, name: str) -> None:
        """Offers an adapter no more; the pipeline itself stays as long as its workers.

        Raises:
            SteploomError: it stays; the message says why.
        """
        model, adapter = self._adapter(name, "unloaded when its engine workers end")
        await self._batcher.unload_adapter(model, adapter)

    def _entries(self, catalogue: Catalogue) -> list[Entry]:
        """The pipeline and its steps are ready or not as one; an adapter is ready if they are, and it is."""
        model, adapters = catalogue.model, catalogue.adapters
        if not self._images.is_ready:
            reason = "no worker is up, or the service drains"
            every = (*names(model), *(adapter_name(model, item.name) for item in adapters))
            return [Entry(name, State.UNAVAILABLE, reason) for name in every]
        return [Entry(name, State.READY) for name in names(model)] + [
            Entry(adapter_name(model, item.name), State(item.state), item.reason) for item in adapters
        ]

    def _adapter(self, name: str, otherwise: str) -> tuple[str, str]:
        """Model and adapter of a name.

        Raises:
            FailedPrecondition: it is the pipeline's, or a step's.
        """
        catalogue = self._batcher.catalogue
        assert catalogue is not None  # or the name would not be kept here
        adapter = _adapter_of(catalogue, name)
        if not adapter:
            like = adapter_name(catalogue.model, "NAME")
            raise FailedPrecondition(f"{name} is {otherwise}; calls load and unload its adapters, as {like}")
        return catalogue.model.name, adapter


def _adapter_of(catalogue: Catalogue, name: str) -> str:
    """What follows the name of the pipeline's adapters; empty: it is none of theirs."""
    prefix = adapter_name(catalogue.model, "")
    return name[len(prefix) :] if name.startswith(prefix) else ""
