"""The driver with fake workers in virtual time."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from steploom_batcher import virtual_time
from steploom_batcher.messages import Admit, Begun, Done, Progress
from steploom_batcher.types import Stage
from steploom_common.errors import DeadlineMissed, JobCancelled, JobFailed, SteploomError

from .driver_rig import COSTS, check_order, config, events_of, result_of, rig

LONG_STEPS = 30  # 3 ms each
STAGE_TIMES_S = (0.0, 0.001, 0.005, 0.011, 0.013, 0.05, 0.0999, 0.1, 0.101, 0.11, 0.119)


def test_events_come_in_order_and_time_is_accounted() -> None:
    async def scenario() -> None:
        async with rig() as here:
            events = await events_of(here.submit("a", 3))
            assert events[0] == Begun()
            assert events[1:-1] == [Progress(step, 3, None) for step in (1, 2, 3)]
            done = events[-1]
            assert isinstance(done, Done)
            assert done.picture.place == (b"7:smile:" * 6)
            assert done.usage.encode_s == 0.010
            assert done.usage.decode_s == 0.020
            assert done.usage.denoise_s == pytest.approx(0.027, abs=0.010)  # the first is dispatched during the encode
            assert (done.usage.ticks, done.usage.mean_rows_per_tick) == (5, 3.0)
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_jobs_of_one_row_ride_in_the_ticks_of_jobs_of_three() -> None:
    async def scenario() -> None:
        async with rig() as here:
            pro, free = here.submit("pro", 20, tier="pro"), here.submit("free", 4, tier="free", rows=1)
            pro_usage, free_usage = [(await result_of(feed)).usage for feed in (pro, free)]
            denoise = [tick for _, tick in here.trace if tick.stage is Stage.DENOISE]
            ridden = [tick for tick in denoise if "free" in {entry.job_id for entry in tick.entries}]
            assert [(len(tick.entries), tick.rows, tick.bucket) for tick in ridden] == [(2, 4, 6)] * 4
            assert len(denoise) == 20
            assert (free_usage.ticks, free_usage.mean_rows_per_tick) == (6, 4.0)
            assert pro_usage.mean_rows_per_tick == (4 * 4 + 16 * 3) / 20
            assert here.scheduler.statistics().denoise_rows == 20 * 3 + 4

    virtual_time.run(scenario())


def test_admit_goes_before_ticks_and_release_after_them() -> None:
    async def scenario() -> None:
        async with rig() as here:
            feeds = [here.submit(f"j{number}", 1 + number % 5) for number in range(40)]
            history = here.worker.history
            await asyncio.gather(*(result_of(feed) for feed in feeds))
            check_order(history)
            assert sum(isinstance(command, Admit) for command in history) == 40
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_an_encode_that_fails_is_tried_again_without_a_second_admission() -> None:
    async def scenario() -> None:
        async with rig() as here:
            here.worker.fail_ticks = 1
            feeds = [here.submit(f"j{number}") for number in range(4)]
            history = here.worker.history
            await asyncio.gather(*(result_of(feed) for feed in feeds))
            assert sum(isinstance(command, Admit) for command in history) == 4
            assert sum(tick.stage is Stage.ENCODE for _, tick in here.trace) == 3

    virtual_time.run(scenario())


@pytest.mark.parametrize("after_s", STAGE_TIMES_S)
def test_a_cancelled_job_ends_when_the_worker_is_done_with_it(after_s: float) -> None:
    async def scenario() -> None:
        async with rig() as here:
            feed = here.submit("a", LONG_STEPS)
            neighbour = here.submit("b", LONG_STEPS)
            await asyncio.sleep(after_s)
            planned = len(here.trace)
            here.driver.cancel("a")
            with pytest.raises(JobCancelled):
                await events_of(feed)
            later = [entry.job_id for _, tick in here.trace[planned:] for entry in tick.entries]
            assert "a" not in later
            await result_of(neighbour)
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_running_job_that_is_cancelled_is_held_until_its_tick_is_back() -> None:
    async def scenario() -> None:
        async with rig() as here:
            feed = here.submit("a", LONG_STEPS)
            await asyncio.sleep(0.005)  # in the encode tick, which ends 10 ms after it began
            assert here.driver.cancel("a") is feed
            assert not feed.has_ended
            assert here.driver.cancel("a") is feed  # again: the same answer
            before = here.loop.time()
            await feed.ended()
            assert here.loop.time() - before > 0.004
            assert here.driver.cancel("a") is None
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_queued_job_that_is_cancelled_ends_at_once() -> None:
    async def scenario() -> None:
        async with rig() as here:
            feeds = [here.submit(f"j{number}", LONG_STEPS) for number in range(9)]  # one more than slots
            await asyncio.sleep(0.005)
            here.driver.cancel("j8")
            assert feeds[8].has_ended
            await asyncio.gather(*(result_of(feed) for feed in feeds[:8]))

    virtual_time.run(scenario())


def test_two_hundred_cancels_under_load_leave_nothing() -> None:
    async def scenario() -> None:
        async with rig(num_workers=2) as here:
            feeds = {}
            ends: list[asyncio.Task[list[object]]] = []
            for number in range(260):
                feeds[f"j{number}"] = here.submit(f"j{number}", 1 + number % 20, deadline_s=600)
                ends.append(asyncio.ensure_future(events_of(feeds[f"j{number}"])))  # type: ignore[arg-type]
                await asyncio.sleep(0.0007)
                if number >= 30 and number % 6:
                    here.driver.cancel(f"j{number - 30 + number % 7}")
            cancelled = 0
            for number in range(230, 260):
                cancelled += here.driver.cancel(f"j{number}") is not None
            results = await asyncio.gather(*ends, return_exceptions=True)
            assert sum(isinstance(result, JobCancelled) for result in results) > 200
            assert all(isinstance(result, list | JobCancelled) for result in results)
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_payloads_are_dropped_with_their_jobs() -> None:
    async def scenario() -> None:
        async with rig() as here:
            feed = here.submit("a")
            kept = weakref.ref(here.driver._roster.jobs["a"].payload)
            await feed.ended()
            await here.assert_nothing_left()
            here.worker.history.clear()
            gc.collect()
            assert kept() is None  # though nobody has read the feed yet
            await result_of(feed)

    virtual_time.run(scenario())


def test_a_poisoned_job_fails_alone_and_the_log_carries_its_error_id(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with rig() as here:
            here.worker.poison.add("j2")
            feeds = [here.submit(f"j{number}", 4) for number in range(6)]
            results = await asyncio.gather(*(result_of(feed) for feed in feeds), return_exceptions=True)
            assert [isinstance(result, JobFailed) for result in results] == [number == 2 for number in range(6)]
            error_id = str(results[2]).rsplit(" ", 1)[1]
            assert [line for line in caplog.messages if error_id in line and "a poisoned job" in line and "j2" in line]
            assert "poisoned" not in str(results[2])
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_job_whose_values_go_bad_costs_the_others_of_its_ticks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def ends(bad: str, since: tuple[Stage, int]) -> tuple[list[object], list[float]]:
        """Results of three jobs, and when each was there. Their buckets are full, with the third and without."""
        async with rig(config(ticks_in_flight=3, lead_s=10.0)) as here:
            here.worker.overflow[bad] = since
            moments = [0.0] * 3

            async def result(number: int) -> Done:
                try:
                    return await result_of(here.submit(f"j{number}", 6, seed=number, rows=1 + number))
                finally:
                    moments[number] = here.loop.time()

            results = await asyncio.gather(*map(result, range(3)), return_exceptions=True)
            check_order(here.worker.history)
            await here.assert_nothing_left()
            return [*results], moments

    undisturbed, undisturbed_moments = virtual_time.run(ends("nobody", (Stage.ENCODE, 0)))
    for since in ((Stage.ENCODE, 0), (Stage.DENOISE, 2), (Stage.DECODE, 0)):
        caplog.clear()
        results, moments = virtual_time.run(ends("j2", since))
        failure = results.pop()
        assert isinstance(failure, JobFailed)
        assert "finite" not in str(failure)
        error_id = str(failure).rsplit(" ", 1)[1]
        lines = [line for line in caplog.messages if "values that are not finite" in line]
        assert len(lines) == 2
        assert "worker w0: job j2 failed in tick " in lines[0]
        assert error_id in lines[1]
        for done, before in zip(results, undisturbed, strict=False):
            assert isinstance(done, Done)
            assert isinstance(before, Done)
            assert (done.picture, done.usage.ticks) == (before.picture, before.usage.ticks)
        assert all(moment <= before for moment, before in zip(moments, undisturbed_moments, strict=True))


def test_jobs_of_a_lost_worker_start_again_and_end_with_the_same_picture(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    async def scenario() -> None:
        async with rig() as here:
            feeds = [here.submit(f"j{number}", 10, seed=number) for number in range(5)]
            await asyncio.sleep(0.04)
            here.hosts[0].kill()
            ends = await asyncio.gather(*(events_of(feed) for feed in feeds))
            for number, events in enumerate(ends):
                done = events[-1]
                assert isinstance(done, Done)
                assert isinstance(done.picture.place, bytes)
                assert done.picture.place.startswith(f"{number}:smile".encode())
                assert sum(isinstance(event, Begun) for event in events) == 1
            assert len(here.hosts[0].dialled_at) == 2
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_cancelled_job_whose_worker_is_lost_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    async def scenario() -> None:
        async with rig() as here:
            feed = here.submit("a", LONG_STEPS)
            await asyncio.sleep(0.005)
            here.driver.cancel("a")
            here.hosts[0].kill()
            before = here.loop.time()
            await feed.ended()
            assert here.loop.time() == before
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_job_past_its_deadline_ends_with_the_statement_that_it_missed_it() -> None:
    async def scenario() -> None:
        async with rig() as here:
            feed = here.submit("a", 10, deadline_s=0.5)
            here.worker.costs = {stage: dict.fromkeys(table, 0.3) for stage, table in COSTS.items()}
            with pytest.raises(DeadlineMissed):
                await events_of(feed)
            assert here.loop.time() < 1.5  # the ticks in flight at 0.5 s are waited for, the job would take 3.6 s
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_slow_reader_gets_the_latest_step_and_the_end() -> None:
    async def scenario() -> None:
        async with rig() as here:
            feed = here.submit("a", 20, preview_every=5)
            await feed.ended()
            events = await events_of(feed)
            assert [type(event) for event in events] == [Begun, Progress, Done]
            assert isinstance(events[1], Progress)
            assert events[1].step == 20
            assert events[1].preview is not None

    virtual_time.run(scenario())


def test_previews_come_with_their_steps() -> None:
    async def scenario() -> None:
        async with rig() as here:
            events = await events_of(here.submit("a", 9, preview_every=4))
            previews = [event.step for event in events if isinstance(event, Progress) and event.preview is not None]
            assert previews == [4, 8]

    virtual_time.run(scenario())


def test_nobody_hears_of_steps_who_does_not_want_to() -> None:
    async def scenario() -> None:
        async with rig() as here:
            events = await events_of(here.submit("a", has_progress=False))
            assert [type(event) for event in events] == [Done]

    virtual_time.run(scenario())


def test_a_drain_ends_when_the_last_job_does() -> None:
    async def scenario() -> None:
        async with rig() as here:
            feeds = [here.submit(f"j{number}") for number in range(12)]
            here.driver.drain()
            assert not here.driver.can_serve
            with pytest.raises(AssertionError, match="DRAINING"):
                here.submit("late")
            await here.driver.idle()
            assert all(feed.has_ended for feed in feeds)
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_the_end_of_the_service_ends_every_job() -> None:
    async def scenario() -> None:
        async with rig() as here:
            feeds = [here.submit(f"j{number}", LONG_STEPS) for number in range(12)]
            await asyncio.sleep(0.02)
            here.driver.close()
            for feed in feeds:
                with pytest.raises(SteploomError):
                    await events_of(feed)

    virtual_time.run(scenario())


def test_an_id_can_be_used_again_after_its_job() -> None:
    async def scenario() -> None:
        async with rig() as here:
            first = here.submit("a")
            with pytest.raises(ValueError, match="lives"):
                here.submit("a")
            await result_of(first)
            await result_of(here.submit("a"))

    virtual_time.run(scenario())


def test_one_timer_at_most_is_armed() -> None:
    async def scenario() -> None:
        async with rig(config(max_queue_delay_s=0.003)) as here:
            feeds = [here.submit(f"j{number}", 5) for number in range(10)]
            most = 0
            while here.driver.num_jobs:
                timers = [timer for timer in here.loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
                most = max(most, sum("Driver" in repr(timer) for timer in timers))
                await asyncio.sleep(0.0005)
            assert most == 1
            assert all(feed.has_ended for feed in feeds)

    virtual_time.run(scenario())


def test_virtual_time_says_when_nothing_can_happen_any_more() -> None:
    async def scenario() -> None:
        await asyncio.sleep(1e6)
        await asyncio.get_running_loop().create_future()

    with pytest.raises(virtual_time.StuckError):
        virtual_time.run(scenario())
