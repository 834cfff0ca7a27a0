"""The diffusion pipeline in the model repository: a model, its steps, and its adapters as models of their own."""

from __future__ import annotations

from collections.abc import Sequence

from steploom_common.errors import FailedPrecondition
from steploom_gateway.batcher_client import BatcherClient
from steploom_gateway.catalogue import Catalogue
from steploom_gateway.oip.names import adapter_name, names
from steploom_gateway.oip.repository import Entry, State
from steploom_gateway.service import ImageService
from steploom_gateway.supervisor import Supervisor


class Pipeline:
    """See `repository.Keeper`.

    Args:
        batcher: what it serves.
        images: whether edits are taken.
        supervisor: replaces workers.
    """

    def __init__(self, batcher: BatcherClient, images: ImageService, supervisor: Supervisor) -> None:
        self._batcher = batcher
        self._images = images
        self._supervisor = supervisor

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
        """Loads an adapter into every worker, or the pipeline anew, by workers in the place of those that serve it.

        Raises:
            SteploomError: it is not loaded; the message says why.
        """
        catalogue = self._catalogue
        adapter = _adapter_of(catalogue, name)
        if adapter:
            await self._batcher.load_adapter(catalogue.model.name, adapter)
        elif name != catalogue.model.name:
            raise FailedPrecondition(f"{name} is a step of {catalogue.model.name}, which is loaded as a whole")
        elif not self._supervisor.is_there:
            raise FailedPrecondition(
                f"{name} is loaded by its engine workers when they start, and no supervisor of theirs is known to this "
                "gateway: replace them where they run, one by one (in Kubernetes by a rollout); its adapters, as "
                f"{adapter_name(catalogue.model, 'NAME')}, can be loaded by this call"
            )
        else:
            await self._supervisor.replace_workers()
            await self._batcher.latest()

    async def unload(self, name: str) -> None:
        """Offers an adapter no more; the pipeline itself stays as long as its workers.

        Raises:
            SteploomError: it stays; the message says why.
        """
        catalogue = self._catalogue
        adapter = _adapter_of(catalogue, name)
        if not adapter:
            raise FailedPrecondition(
                f"{name} is unloaded when its engine workers end; its adapters, as "
                f"{adapter_name(catalogue.model, 'NAME')}, can be unloaded by this call"
            )
        await self._batcher.unload_adapter(catalogue.model.name, adapter)

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

    @property
    def _catalogue(self) -> Catalogue:
        catalogue = self._batcher.catalogue
        assert catalogue is not None  # or a name would not be kept here
        return catalogue


def _adapter_of(catalogue: Catalogue, name: str) -> str:
    """What follows the name of the pipeline's adapters; empty: it is none of theirs."""
    prefix = adapter_name(catalogue.model, "")
    return name[len(prefix) :] if name.startswith(prefix) else ""
