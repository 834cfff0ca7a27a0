"""What is counted of a device: in the counter itself, over a link, and in the service's status."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import grpc.aio
import pytest

from steploom_batcher import virtual_time
from steploom_batcher.config import BatcherConfig
from steploom_batcher.device_use import GAP_BOUNDS_S, DeviceUse, StageUse
from steploom_batcher.fake_worker import fake_ready, flat_costs
from steploom_batcher.fake_worker_service import FakeWorkerService, serve_fake_worker
from steploom_batcher.messages import TickReport
from steploom_batcher.server import BatcherServer
from steploom_batcher.types import Entry, Key, Outcome, Stage, Status, Tick
from steploom_batcher.worker_wire import report_from_wire
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1 import batcher_pb2_grpc
from steploom_protos.worker.v1 import worker_pb2

from .driver_rig import rig


def tick(stage: Stage, rows: int = 5, bucket: int = 6) -> Tick:
    return Tick(1, "w", stage, Key("m", (4, 8, 8)), (Entry("a", 0, 0),), rows, bucket, 0.0)


def report(start_s: float, seconds: float, status: Status = Status.OK, idle_s: float = 0.0) -> TickReport:
    return TickReport(1, Outcome(status, seconds, idle_s=idle_s), start_unix_s=start_s)


def test_each_stage_has_its_own_time_and_rows() -> None:
    use = DeviceUse()
    use.add(tick(Stage.ENCODE, 3, 4), report(0.0, 0.5))
    use.add(tick(Stage.DENOISE), report(1.0, 0.25))
    use.add(tick(Stage.DENOISE, 6), report(2.0, 0.5))
    assert use.stages[Stage.ENCODE] == StageUse(ticks=1, busy_s=0.5, rows=3, padding=1)
    assert use.stages[Stage.DENOISE] == StageUse(ticks=2, busy_s=0.75, rows=11, padding=1)
    assert use.stages[Stage.DECODE] == StageUse()


def test_idle_time_is_what_the_worker_says_before_ticks_of_any_stage() -> None:
    use = DeviceUse()
    use.add(tick(Stage.ENCODE), report(1.0, 0.5, idle_s=0.25))
    use.add(tick(Stage.DENOISE), report(1.5, 0.5, idle_s=0.5))
    assert use.idle_s == 0.75


@pytest.mark.parametrize("status", [Status.FAILED, Status.SKIPPED])
def test_a_tick_that_did_not_run_counts_nowhere(status: Status) -> None:
    use = DeviceUse()
    use.add(tick(Stage.DENOISE), report(1.0, 0.5))
    use.add(tick(Stage.DENOISE), report(1.5, 0.5, status))
    use.add(tick(Stage.DENOISE), report(2.5, 0.5))
    assert use.stages[Stage.DENOISE].ticks == 2
    assert sum(use.gaps.values()) == 1
    (bound,) = use.gaps
    assert 1.0 <= bound < 1.26


def test_a_gap_is_from_the_end_of_a_denoise_tick_to_the_start_of_the_next() -> None:
    use = DeviceUse()
    use.add(tick(Stage.DENOISE), report(10.0, 0.5))
    use.add(tick(Stage.DECODE), report(10.5, 0.9))  # beside them, in another lane
    use.add(tick(Stage.DENOISE), report(10.503, 0.5))
    use.add(tick(Stage.DENOISE), report(11.003, 0.5))
    assert sorted(use.gaps.values()) == [1, 1]
    least, most = use.gaps
    assert least == GAP_BOUNDS_S[0]
    assert 0.003 <= most < 0.003 * 1.26


def test_a_tick_that_seems_to_begin_before_the_last_has_ended_follows_it_at_once() -> None:
    use = DeviceUse()
    use.add(tick(Stage.DENOISE), report(10.0, 0.5))
    use.add(tick(Stage.DENOISE), report(10.4, 0.5))
    assert use.gaps == {GAP_BOUNDS_S[0]: 1}


def test_a_gap_above_all_bounds_is_counted_too() -> None:
    use = DeviceUse()
    use.add(tick(Stage.DENOISE), report(0.0, 1.0))
    use.add(tick(Stage.DENOISE), report(100.0, 1.0))
    assert use.gaps == {math.inf: 1}


def test_the_pause_before_the_first_tick_of_a_session_is_no_gap() -> None:
    use = DeviceUse()
    use.add(tick(Stage.DENOISE), report(0.0, 1.0))
    use.reconnected()
    use.add(tick(Stage.DENOISE), report(5.0, 1.0))
    assert use.gaps == {}
    assert use.stages[Stage.DENOISE].ticks == 2


def test_the_start_of_a_tick_comes_over_the_wire() -> None:
    done = worker_pb2.TickDone(
        tick_id=4, status=worker_pb2.TICK_STATUS_OK, seconds=0.5, start_unix_s=12.25, idle_s=0.125
    )
    got = report_from_wire(worker_pb2.Report(tick_done=done))
    assert isinstance(got, TickReport)
    assert got.start_unix_s == 12.25
    assert got.outcome.idle_s == 0.125


def test_a_link_counts_what_its_worker_ran_across_sessions() -> None:
    async def scenario() -> None:
        async with rig() as here:
            for job_id in ("a", "b"):
                await asyncio.sleep(5)
                assert [event async for event in here.submit(job_id).events()]
                here.hosts[0].kill()
            assert not here.links[0].num_owed
            use = here.links[0].use
            denoise = use.stages[Stage.DENOISE]
            assert (denoise.ticks, denoise.rows, denoise.padding) == (6, 18, 0)
            assert denoise.busy_s == pytest.approx(6 * 0.009)
            assert sum(use.gaps.values()) == 4  # none across the loss
            assert use.stages[Stage.ENCODE].rows == use.stages[Stage.DECODE].rows == 2

    virtual_time.run(scenario())


async def test_the_status_tells_of_each_stage_and_of_the_gaps(tmp_path: Path) -> None:
    worker = FakeWorkerService(fake_ready(flat_costs(0.001, 0.0005, 0.001)))
    listening = await serve_fake_worker(f"unix:{tmp_path}/w.sock", worker)
    batcher = BatcherServer(BatcherConfig(), f"unix:{tmp_path}/b.sock", [f"unix:{tmp_path}/w.sock"])
    await batcher.start()
    async with asyncio.timeout(60), grpc.aio.insecure_channel(f"unix:{tmp_path}/b.sock") as channel:
        stub = batcher_pb2_grpc.BatcherStub(channel)
        while not batcher.driver.can_serve:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        pixels = worker_pb2.Pixels(height=4, width=4, inline=bytes(48))
        request = pb.SubmitRequest(job_id="a", tier="pro", pixels=pixels, steps=3)
        assert [event async for event in stub.Submit(request)]
        status = await stub.Status(pb.StatusRequest())
    await batcher.stop()
    await listening.stop(None)
    (found,) = status.workers
    assert [use.stage for use in found.stages] == [stage.value for stage in Stage]
    assert [(use.ticks, use.rows) for use in found.stages] == [(1, 1), (3, 9), (1, 1)]
    assert all(use.busy_s > 0 for use in found.stages)
    assert sum(bucket.count for bucket in found.denoise_gaps) == 2
