"""The models of one repository: which are loaded, which are being loaded or unloaded, and where a batch goes.

On the event loop alone; what blocks is done on threads. A model that is loaded anew serves until the new one is warm.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from steploom_common.arena import ArenaViews
from steploom_engine_worker.plain.errors import Busy, UnknownModel
from steploom_engine_worker.plain.loaded import LoadedModel, OnFatal, load_model
from steploom_engine_worker.plain.names import is_model_name
from steploom_engine_worker.plain.repository import Repository
from steploom_engine_worker.plain.work import Work
from steploom_protos.inference import model_config_pb2
from steploom_protos.worker.v1 import plain_pb2 as pb

log = logging.getLogger(__name__)

UNLOADED = "unloaded"  # the reason of a model that somebody has taken out of service


class State(Enum):
    """Of a model."""

    LOADING = pb.MODEL_STATE_LOADING
    READY = pb.MODEL_STATE_READY
    UNLOADING = pb.MODEL_STATE_UNLOADING
    UNAVAILABLE = pb.MODEL_STATE_UNAVAILABLE


class Entry:
    """What is known of one model that somebody has asked for."""

    def __init__(self) -> None:
        self.state = State.UNAVAILABLE
        self.reason = ""
        self.model: LoadedModel | None = None  # that takes batches
        self.generation = 0  # of the latest load, whether it went well or not
        self.is_busy = False  # with a load or an unload


@dataclass(frozen=True)
class ModelStatus:
    """One model, as others are told of it."""

    name: str
    config: model_config_pb2.ModelConfig | None  # complete; None: nothing is loaded
    versions: tuple[int, ...]  # that take batches, rising
    state: State
    reason: str
    num_instances: int  # of each version
    generation: int  # of what serves; 0: nothing does


class Host:
    """See the module.

    Args:
        repository: where models come from.
        views: shared memory of other processes.
        on_fatal: hears of a device that is lost: the process is to end. On any thread.
    """

    def __init__(self, repository: Repository, views: ArenaViews, on_fatal: OnFatal) -> None:
        self._repository = repository
        self._views = views
        self._on_fatal = on_fatal
        self._entries: dict[str, Entry] = {}
        self._models: dict[str, LoadedModel] = {}  # those of the entries that take batches
        self._changed = asyncio.Event()  # set, and replaced, at every change
        self._tasks: set[asyncio.Task[None]] = set()  # loads and ends that are under way
        self.is_draining = False
        self.num_open = 0  # batches that have come and are not answered; who replies counts them down

    def __repr__(self) -> str:
        return f"Host({self._repository.root}, ready={sorted(self._models)}, open={self.num_open})"

    def submit(self, work: Work) -> None:
        """Hands a batch to its model, or refuses it."""
        self.num_open += 1
        batch = work.batch
        model = self._models.get(batch.model)
        if self.is_draining:
            work.refuse(pb.ERROR_KIND_UNAVAILABLE, "the host is ending")
        elif model is None:
            work.refuse(pb.ERROR_KIND_UNAVAILABLE, f"model {batch.model[:200]!r} is not ready")
        elif not batch.items:
            work.refuse(pb.ERROR_KIND_INVALID, "items: is empty, must have one at least")
        elif not model.submit(batch.version, work):
            versions = ", ".join(map(str, model.versions))
            text = f"version {batch.version} of model {batch.model!r} is not served; there are: {versions}"
            work.refuse(pb.ERROR_KIND_UNAVAILABLE, text)

    async def load_all(self, names: Iterable[str] | None) -> None:
        """Loads models beside each other; states tell of those that cannot be loaded.

        Args:
            names: of their folders; None: all that there are.
        """
        found = await asyncio.to_thread(self._repository.names) if names is None else names
        await asyncio.gather(*(self._try_to_load(name) for name in found))

    async def _try_to_load(self, name: str) -> None:
        try:
            await self.load(name)
        except Exception as error:
            log.error("model %s cannot be loaded: %s", name, error)

    async def load(self, name: str, config: model_config_pb2.ModelConfig | None = None) -> ModelStatus:
        """Loads a model, or loads it anew. It goes on where its caller gives up.

        Args:
            name: of its folder.
            config: in place of the folder's own.

        Raises:
            UnknownModel: there is no such folder.
            BrokenModel: it cannot be loaded; what was loaded before serves on.
            Busy: it is being loaded or unloaded.
        """
        await self._alone(name, lambda entry: self._load(entry, name, config))
        return self._status(name)

    async def unload(self, name: str) -> None:
        """Takes a model out of service; returns when its batches have ended. It goes on where its caller gives up.

        Raises:
            UnknownModel: it is not loaded.
            Busy: it is being loaded or unloaded.
        """
        await self._alone(name, lambda entry: self._unload(entry, name))

    async def _alone(self, name: str, change: Callable[[Entry], Coroutine[Any, Any, None]]) -> None:
        """One change of a model at a time, and each to its end."""
        entry = self._entries.get(name) or Entry()
        if entry.is_busy:
            raise Busy(f"model {name!r} is being loaded or unloaded")
        entry.is_busy = True

        async def run() -> None:
            try:
                await change(entry)
            finally:
                entry.is_busy = False

        await asyncio.shield(self._keep(run()))

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop alone would let it go
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, entry: Entry, name: str, config: model_config_pb2.ModelConfig | None) -> None:
        entry.generation += 1
        if is_model_name(name):
            self._entries[name] = entry
            self._note(entry, entry.state if entry.model else State.LOADING, "")
        try:
            source = await asyncio.to_thread(self._repository.read, name, config)
            model = await load_model(source, entry.generation, self._views, self._on_fatal)
        except Exception as error:
            if isinstance(error, UnknownModel) and entry.model is None:
                self._entries.pop(name, None)
            self._note(entry, State.READY if entry.model else State.UNAVAILABLE, str(error))
            raise
        before, entry.model = entry.model, model
        self._models[name] = model
        self._note(entry, State.READY, "")
        log.info("ready: %s", model)
        if before is not None:
            before.stop()
            self._keep(before.ended())

    async def _unload(self, entry: Entry, name: str) -> None:
        model = self._models.pop(name, None)
        if model is None:
            raise UnknownModel(name, sorted(self._models))
        self._note(entry, State.UNLOADING, "")
        entry.model = None
        model.stop()
        await model.ended()
        self._note(entry, State.UNAVAILABLE, UNLOADED)
        log.info("unloaded: %s", model)

    def _note(self, entry: Entry, state: State, reason: str) -> None:
        entry.state, entry.reason = state, reason
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change of what `statuses` says."""
        return self._changed

    def statuses(self) -> list[ModelStatus]:
        """Every model that somebody has asked for, by name."""
        return [self._status(name) for name in sorted(self._entries)]

    def _status(self, name: str) -> ModelStatus:
        entry = self._entries[name]
        model = entry.model
        return ModelStatus(
            name=name,
            config=model.spec.config if model else None,
            versions=model.versions if model else (),
            state=entry.state,
            reason=entry.reason,
            num_instances=model.num_instances if model else 0,
            generation=model.generation if model else 0,
        )

    async def index(self) -> list[ModelStatus]:
        """Every model of the repository, loaded or not, by name."""
        names = {*await asyncio.to_thread(self._repository.names), *self._entries}
        never = ModelStatus("", None, (), State.UNAVAILABLE, "", 0, 0)
        return [
            self._status(name) if name in self._entries else dataclasses.replace(never, name=name)
            for name in sorted(names)
        ]

    def drain(self) -> None:
        """Batches that come from now on are refused."""
        self.is_draining = True
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self) -> list[LoadedModel]:
        """Models end when their batches have; returns those that do, to be waited for."""
        models = list(self._models.values())
        self._models.clear()
        for model in models:
            model.stop()
        return models
