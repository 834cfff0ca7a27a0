"""A driver with fake workers behind real links, for tests in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from steploom_batcher.config import BatcherConfig, TierConfig
from steploom_batcher.driver import Driver, key_of
from steploom_batcher.fake_worker import FakeHost, FakeWorker, fake_ready, flat_costs
from steploom_batcher.feed import JobFeed
from steploom_batcher.messages import Admit, Command, Done, Event, Free, Payload, Picture
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import JobSpec, Refused, Tick
from steploom_batcher.worker_link import Backoff, WorkerLink

COSTS = flat_costs(encode_s=0.010, row_s=0.001, decode_s=0.020)
READY = fake_ready(COSTS, num_slots=8)
KEY = key_of(READY.model)
PICTURE = Picture(4, 4, bytes(48))


def config(**changes: object) -> BatcherConfig:
    """Two tiers with generous bounds."""
    tiers = {"free": TierConfig(steps=3, max_queued=1000), "pro": TierConfig(steps=35, max_queued=1000)}
    return BatcherConfig(**{"tiers": tiers, "min_backoff_s": 0.1, "max_backoff_s": 2.0, **changes})  # type: ignore[arg-type]


def payload(steps: int, seed: int = 7, preview_every: int = 0) -> Payload:
    """What `FakeWorker` draws tells the seed."""
    return Payload("smile", PICTURE, None, steps, 7.5, 1.5, seed, 1, preview_every)


class Rig:
    """A driver, its trace, and a host and a link for each worker."""

    def __init__(self, settings: BatcherConfig, num_workers: int) -> None:
        self.trace: list[tuple[float, Tick]] = []
        self.loop = asyncio.get_running_loop()
        self.scheduler = Scheduler(settings)
        self.driver = Driver(self.scheduler, self.loop, on_tick=lambda now, tick: self.trace.append((now, tick)))
        self.hosts = [FakeHost(READY) for _ in range(num_workers)]
        self.links = [
            WorkerLink(
                f"w{index}",
                self.driver,
                Backoff(settings.min_backoff_s, settings.max_backoff_s, random.Random(index)),
                host.dial,
                settings.overdue,
            )
            for index, host in enumerate(self.hosts)
        ]

    @property
    def worker(self) -> FakeWorker:
        """That of the first host."""
        assert self.hosts[0].worker is not None
        return self.hosts[0].worker

    def submit(
        self,
        job_id: str,
        steps: int = 3,
        *,
        seed: int = 7,
        deadline_s: float = 60.0,
        preview_every: int = 0,
        has_progress: bool = True,
        tier: str = "free",
        rows: int = 3,
    ) -> JobFeed:
        """An admitted job's feed."""
        spec = JobSpec(job_id, KEY, tier, steps, rows, self.loop.time() + deadline_s)
        answer = self.driver.submit(spec, payload(steps, seed, preview_every), has_progress)
        assert not isinstance(answer, Refused), answer
        return answer[1]

    async def assert_nothing_left(self) -> None:
        """No job, payload or slot, on either side."""
        await asyncio.sleep(0.001)  # releases are on their way
        assert self.driver.num_jobs == 0
        assert self.scheduler.is_idle
        assert all(worker.slots_used == 0 for worker in self.scheduler.statistics().workers.values())
        assert all(host.worker is None or not host.worker.slots for host in self.hosts)


@asynccontextmanager
async def rig(settings: BatcherConfig | None = None, num_workers: int = 1) -> AsyncIterator[Rig]:
    """A rig whose workers are up; checks at the end that no task is left behind."""
    before = asyncio.all_tasks()
    made = Rig(settings or config(), num_workers)
    for link in made.links:
        link.start()
    while not all(link.is_up for link in made.links):  # noqa: ASYNC110 (virtual time)
        await asyncio.sleep(0.001)
    yield made
    made.driver.close()
    await asyncio.gather(*(link.close() for link in made.links))
    assert asyncio.all_tasks() == before


async def events_of(feed: JobFeed) -> list[Event]:
    """All events of a job that finishes."""
    return [event async for event in feed.events()]


async def result_of(feed: JobFeed) -> Done:
    """The last of them."""
    last = (await events_of(feed))[-1]
    assert isinstance(last, Done)
    return last


def check_order(history: list[Command]) -> None:
    """In each slot: Admit, then ticks, then Free, over and over."""
    taken: set[int] = set()
    for command in history:
        match command:
            case Admit():
                assert command.slot not in taken
                taken.add(command.slot)
            case Free():
                taken.remove(command.slot)
            case Tick():
                assert {entry.slot for entry in command.entries} <= taken
