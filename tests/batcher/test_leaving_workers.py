"""Workers that leave, in virtual time: no job begins there any more, none is lost, a successor serves beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
from scheduler_model import COSTS, KEY, spec

from steploom_batcher import virtual_time
from steploom_batcher.config import SchedulerConfig
from steploom_batcher.driver import key_of
from steploom_batcher.fake_worker import fake_model, fake_ready
from steploom_batcher.feed import JobFeed
from steploom_batcher.messages import Admit, Model, Preparing
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import Admitted, JobSpec, Refused, Stage, WorkerProfile
from steploom_common.errors import Unavailable

from .driver_rig import COSTS as RIG_COSTS
from .driver_rig import KEY as RIG_KEY
from .driver_rig import Rig, check_order, config, payload, result_of, rig


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def admitted(history: Sequence[object]) -> list[str]:
    return [command.job_id for command in history if isinstance(command, Admit)]


@pytest.mark.parametrize("policy", ["step", "request"])
def test_jobs_in_progress_end_where_they_are_and_new_ones_begin_with_the_successor(policy: str) -> None:
    async def scenario() -> None:
        async with rig(config(policy=policy)) as here:
            (host,), (link,) = here.hosts, here.links
            old = [here.submit(f"old{number}", 30) for number in range(6)]
            await asyncio.sleep(0.1)
            known = set(admitted(here.worker.history))
            assert known
            leaving = host.leave()
            new = [here.submit(f"new{number}", 5) for number in range(6)]
            await asyncio.gather(*(result_of(feed) for feed in (*old, *new)))
            successor = here.worker
            assert successor is not leaving
            assert set(admitted(leaving.history)) == known
            assert (
                set(admitted(successor.history))
                == {f"{which}{n}" for which in ("old", "new") for n in range(6)} - known
            )
            for worker in (leaving, successor):
                check_order(worker.history)
            await asyncio.sleep(0.1)
            assert leaving._is_dead  # it was hung up on
            assert (link.is_up, link.last_error, len(host.dialled_at)) == (True, "", 2)
            assert not link.is_leaving
            assert list(here.scheduler.statistics().workers) == ["w0+1"] == [link.name]
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_worker_is_replaced_again_and_again() -> None:
    async def scenario() -> None:
        async with rig() as here:
            for turn in range(5):
                feeds = [here.submit(f"{turn}-{number}", 30) for number in range(4)]
                await asyncio.sleep(0.05)
                here.hosts[0].leave()
                await asyncio.gather(*(result_of(feed) for feed in feeds))
                await asyncio.sleep(0.1)
            assert len(here.driver.models) == 1
            assert len(here.scheduler.statistics().workers) == 1
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_without_a_successor_what_has_not_begun_waits_for_one() -> None:
    async def scenario() -> None:
        async with rig(config(worker_grace_s=30.0)) as here:
            (host,), (link,) = here.hosts, here.links
            old = here.submit("old", 30)
            await asyncio.sleep(0.05)
            host.is_listening = False
            leaving = host.leave()
            await asyncio.sleep(0.01)
            waiting = here.submit("waiting")
            assert (link.is_up, link.is_leaving) == (True, True)
            await result_of(old)
            await asyncio.sleep(5.0)
            assert leaving._is_dead
            assert (link.is_up, link.is_leaving) == (False, False)
            late = here.submit("late")  # it is expected back
            host.is_listening = True
            await asyncio.gather(result_of(waiting), result_of(late))
            assert admitted(leaving.history) == ["old"]
            assert link.name == "w0"
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_successor_with_another_model_ends_the_wait_of_those_that_only_the_old_could_draw() -> None:
    async def scenario() -> None:
        async with rig() as here:
            host = here.hosts[0]
            running = [here.submit(f"j{number}", 30, deadline_s=1e6) for number in range(24)]
            await asyncio.sleep(0.05)
            host.ready = fake_ready(RIG_COSTS, 8, fake_model("another", 8, 8))
            begun = set(admitted(host.leave().history))
            await asyncio.sleep(0.1)
            assert [model.name for model in here.driver.models.values()] == ["another", "fake"]
            results = await asyncio.gather(*(result_of(feed) for feed in running), return_exceptions=True)
            ended = {f"j{number}" for number, result in enumerate(results) if not isinstance(result, Exception)}
            assert ended == begun
            assert {type(result) for result in results if isinstance(result, Exception)} == {Unavailable}
            assert [model.name for model in here.driver.models.values()] == ["another"]
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_worker_that_dies_while_it_leaves_loses_nothing() -> None:
    async def scenario() -> None:
        async with rig() as here:
            feeds = [here.submit(f"j{number}", 30) for number in range(4)]
            await asyncio.sleep(0.05)
            reports = here.hosts[0]._reports
            here.hosts[0].leave()
            await asyncio.sleep(0.02)
            reports.put_nowait(None)
            await asyncio.gather(*(result_of(feed) for feed in feeds))
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_two_workers_share_what_a_third_leaves() -> None:
    scheduler = Scheduler(SchedulerConfig(max_queue_delay_s=0.0))
    for name in ("w0", "w1"):
        scheduler.worker_up(WorkerProfile(name, KEY, 2, COSTS), 0.0)
    for number in range(4):
        assert isinstance(scheduler.submit(spec(f"j{number}", deadline=60.0), 0.0), Admitted)
    ticks = {tick.worker_id: tick for tick in scheduler.next_ticks(0.0)}
    scheduler.worker_leaving("w0")
    assert scheduler.statistics().workers["w0"].slots_used == len(ticks["w0"].entries)
    assert isinstance(scheduler.submit(spec("late", deadline=60.0), 0.0), Admitted)
    begun = {entry.job_id for entry in ticks["w0"].entries}
    later = [tick for tick in scheduler.next_ticks(0.1) if tick.worker_id == "w0" and tick.stage is Stage.ENCODE]
    assert not [entry for tick in later for entry in tick.entries if entry.job_id not in begun]


def test_a_successor_is_not_taken_for_slow_because_it_was_measured_on_a_busy_device() -> None:
    scheduler = Scheduler(SchedulerConfig())
    scheduler.worker_up(WorkerProfile("w0", KEY, 2, COSTS), 0.0)
    slow = {stage: {bucket: 3 * seconds for bucket, seconds in table.items()} for stage, table in COSTS.items()}
    scheduler.worker_up(WorkerProfile("w0+1", KEY, 2, slow, home="w0"), 0.0)
    scheduler.worker_up(WorkerProfile("w1", KEY, 2, slow), 0.0)
    costs = {name: stats.costs for name, stats in scheduler.statistics().workers.items()}
    assert costs["w0+1"] == costs["w0"]
    assert costs["w1"][Stage.DENOISE][3] == 3 * costs["w0"][Stage.DENOISE][3]


def test_a_preparation_is_a_sign_of_life() -> None:
    async def scenario() -> None:
        async with rig(config(tick_timeout_s=60.0)) as here:
            feed = here.submit("a", 10, deadline_s=6000)
            await asyncio.sleep(0.02)
            here.worker.hang()
            for _ in range(20):
                await asyncio.sleep(30)
                here.hosts[0].announce(Preparing())
            assert len(here.hosts[0].dialled_at) == 1
            await result_of(feed)  # no more signs of life
            assert len(here.hosts[0].dialled_at) == 2

    virtual_time.run(scenario())


def test_a_tick_that_is_predicted_to_take_long_is_waited_for() -> None:
    async def scenario() -> None:
        async with rig(config(tick_timeout_s=1.0, tick_timeout_factor=50.0)) as here:
            slow = {**RIG_COSTS, Stage.ENCODE: dict.fromkeys((1, 2, 4, 8), 2.0)}
            here.hosts[0].ready = replace(here.hosts[0].ready, costs=slow)
            here.hosts[0].kill()
            await asyncio.sleep(1)
            feed = here.submit("a", 10, deadline_s=6000)
            await asyncio.sleep(0.02)
            here.worker.hang()
            await asyncio.sleep(95)
            assert len(here.hosts[0].dialled_at) == 2
            await asyncio.sleep(10)
            assert len(here.hosts[0].dialled_at) == 3
            await result_of(feed)

    virtual_time.run(scenario())


def another_digest(name: str = "fake", side: int = 4) -> Model:
    return replace(fake_model(name, side, side), digest="new weights")


async def keep_asking(here: Rig, until: asyncio.Event) -> list[JobFeed]:
    """A job every 30 ms, under the key that is served when it comes, as the service does it."""
    feeds: list[JobFeed] = []
    while not until.is_set():
        key = key_of(next(iter(here.driver.models.values())))
        spec = JobSpec(f"k{len(feeds)}", key, "free", 5, 3, here.loop.time() + 60.0)
        answer = here.driver.submit(spec, payload(5))
        assert not isinstance(answer, Refused), answer
        feeds.append(answer[1])
        await asyncio.sleep(0.03)
    return feeds


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("beside", [True, False])
def test_new_weights_of_the_model_take_over_and_no_job_fails(num_workers: int, beside: bool) -> None:
    """Those that wait when the last worker of the old ones leaves are drawn by the new."""

    async def scenario() -> None:
        async with rig(num_workers=num_workers) as here:
            waiting = [here.submit(f"w{number}", 60) for number in range(20 * num_workers)]
            over = asyncio.Event()
            asking = asyncio.create_task(keep_asking(here, over))
            await asyncio.sleep(0.3)
            for host in here.hosts:
                host.ready = fake_ready(RIG_COSTS, 8, another_digest())
                host.is_listening = beside
                leaving = host.leave()
                await asyncio.sleep(0.5)
                if not beside:
                    while leaving.slots:  # noqa: ASYNC110 (virtual time)
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(0.5)
                    host.is_listening = True
                await asyncio.sleep(3.0)
            assert [model.digest for model in here.driver.models.values()] == ["new weights"]
            over.set()
            asked = await asking
            assert len(asked) > 50
            await asyncio.gather(*(result_of(feed) for feed in (*waiting, *asked)))
            await asyncio.sleep(1.0)
            assert here.scheduler.statistics().failed == 0
            await here.assert_nothing_left()

    virtual_time.run(scenario())


@pytest.mark.parametrize("model", [another_digest("other"), another_digest(side=8)])
def test_jobs_wait_for_no_other_model_and_no_other_size(model: Model) -> None:
    async def scenario() -> None:
        async with rig() as here:
            feeds = [here.submit(f"w{number}", 60) for number in range(12)]
            await asyncio.sleep(0.1)
            here.hosts[0].ready = fake_ready(RIG_COSTS, 8, model)
            here.hosts[0].leave()
            results = await asyncio.gather(*(result_of(feed) for feed in feeds), return_exceptions=True)
            assert [type(result) for result in results].count(Unavailable) == 4  # 8 had begun
            await asyncio.sleep(1.0)
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_jobs_whose_adapter_the_new_weights_do_not_have_are_told_so() -> None:
    async def scenario() -> None:
        async with rig() as here:
            given = replace(payload(30), adapter="student")
            feeds = []
            for number in range(12):
                answer = here.driver.submit(
                    JobSpec(f"a{number}", RIG_KEY, "free", 30, 3, here.loop.time() + 60.0), given
                )
                assert not isinstance(answer, Refused)
                feeds.append(answer[1])
            await asyncio.sleep(0.1)
            here.hosts[0].ready = fake_ready(RIG_COSTS, 8, replace(another_digest(), adapters={}))
            here.hosts[0].leave()
            results = await asyncio.gather(*(result_of(feed) for feed in feeds), return_exceptions=True)
            lost = [str(result) for result in results if isinstance(result, Unavailable)]
            assert len(lost) == 4
            assert all(words.startswith("adapter 'student' is lost with its worker") for words in lost)
            await asyncio.sleep(1.0)
            await here.assert_nothing_left()

    virtual_time.run(scenario())
