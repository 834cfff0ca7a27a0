"""A model in memory: the instances of each of its versions, and their queues."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from queue import SimpleQueue

from steploom_common.arena import ArenaViews
from steploom_engine_worker.plain.errors import BrokenModel
from steploom_engine_worker.plain.instance import Instance, Queue
from steploom_engine_worker.plain.placement import placements
from steploom_engine_worker.plain.program import Origin
from steploom_engine_worker.plain.program_loader import forget
from steploom_engine_worker.plain.repository import Source
from steploom_engine_worker.plain.spec import Placement
from steploom_engine_worker.plain.work import Work

log = logging.getLogger(__name__)

OnFatal = Callable[[BaseException], None]

_PACKAGE = "steploom_plain_models"  # below which the code of models is known
_MAX_REASON = 500  # characters

_loads = count(1)  # of the whole process: code that is known under a name is not read again


class LoadedModel:
    """What one load of a model has made. On the event loop.

    Args:
        source: that it is loaded from.
        places: of the instances of each version.
        generation: of the load.
        views: shared memory of other processes.
        on_fatal: hears of a device that is lost.
    """

    def __init__(
        self, source: Source, places: list[Placement], generation: int, views: ArenaViews, on_fatal: OnFatal
    ) -> None:
        self.spec = source.spec
        self.generation = generation
        self.num_instances = len(places)
        self.versions = tuple(sorted(source.files))
        self._queues: dict[int, Queue] = {version: SimpleQueue() for version in self.versions}
        self._origins = {
            version: Origin(source.spec, source.backend, file, f"{_PACKAGE}.load_{next(_loads)}_{source.spec.name}")
            for version, file in source.files.items()
        }
        self._instances = [
            Instance(
                f"{source.spec.name}/{version}#{number}",
                self._origins[version],
                place,
                source.warm_ups,
                self._queues[version],
                views,
                on_fatal,
            )
            for version in self.versions
            for number, place in enumerate(places)
        ]

    def __repr__(self) -> str:
        return f"LoadedModel({self.spec.name}, generation={self.generation}, versions={self.versions})"

    async def start(self) -> None:
        """Loads and warms up all instances beside each other.

        Raises:
            BrokenModel: one of them cannot be; none is left.
        """
        for instance in self._instances:
            instance.start()
        results = await asyncio.gather(
            *(asyncio.wrap_future(instance.ready) for instance in self._instances), return_exceptions=True
        )
        errors = [result for result in results if result is not None]
        if errors:
            self.stop()
            await self.ended()
            raise _reason(self.spec.name, errors[0])

    def submit(self, version: int, work: Work) -> bool:
        """Hands a batch to the first instance that is free; False where there is no such version.

        Args:
            version: 0: the newest.
            work: the batch.
        """
        queue = self._queues.get(version or self.versions[-1])
        if queue is None:
            return False
        queue.put(work)
        return True

    def stop(self) -> None:
        """Instances end when all batches that were submitted have. Nothing may be submitted any more."""
        for queue in self._queues.values():
            for _ in range(self.num_instances):
                queue.put(None)

    async def ended(self) -> None:
        """Returns when all instances have ended."""
        await asyncio.gather(*(asyncio.wrap_future(instance.ended) for instance in self._instances))
        for origin in self._origins.values():
            forget(origin)


async def load_model(source: Source, generation: int, views: ArenaViews, on_fatal: OnFatal) -> LoadedModel:
    """Loads a model.

    Raises:
        BrokenModel: it cannot be loaded; says why.
    """
    try:
        places = await asyncio.to_thread(placements, source.spec.config, source.backend)
    except ImportError as error:
        raise BrokenModel(source.backend, f"needs torch, which cannot be loaded: {error}") from error
    model = LoadedModel(source, places, generation, views, on_fatal)
    await model.start()
    return model


def _reason(name: str, error: BaseException) -> BrokenModel:
    """Why an instance is not ready, in words for an operator; the log has the rest."""
    if isinstance(error, BrokenModel):
        return error
    log.error("model %s cannot be loaded", name, exc_info=error)
    first = (str(error).strip().splitlines() or [""])[0]
    broken = BrokenModel(type(error).__name__, first[:_MAX_REASON] or "without a message")
    broken.__cause__ = error
    return broken
