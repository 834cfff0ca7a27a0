"""A worker whose ticks become cheaper while it serves: what the batcher makes of it."""

from __future__ import annotations

import asyncio

from scheduler_model import COSTS, KEY, spec

from steploom_batcher import virtual_time
from steploom_batcher.config import SchedulerConfig
from steploom_batcher.cost_model import CostModel
from steploom_batcher.messages import Memory, Preparation, Prepared
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.service import _worker_status
from steploom_batcher.types import Admitted, Cause, Refused, Stage, WorkerProfile
from steploom_batcher.worker_wire import ready_from_wire, report_from_wire
from steploom_protos.worker.v1 import worker_pb2

from .driver_rig import rig

# as if every tick ran in the largest bucket
FLAT = {**COSTS, Stage.DENOISE: dict.fromkeys((1, 3, 12, 24), 0.05)}


def seconds(costs: CostModel) -> list[float]:
    return [costs.seconds(Stage.DENOISE, rows) for rows in (1, 3, 12, 24)]


def test_what_is_measured_anew_counts_at_once_and_the_rest_stays() -> None:
    costs = CostModel(FLAT, max_rows=24)
    costs.replace({Stage.DENOISE: {1: 0.004, 3: 0.005, 48: 1.0}})
    assert seconds(costs) == [0.004, 0.005, 0.05, 0.05]
    assert list(costs.buckets(Stage.DENOISE)) == [1, 3, 12, 24]


def test_more_rows_never_cost_less() -> None:
    costs = CostModel(FLAT, max_rows=24)
    costs.replace({Stage.DENOISE: {3: 0.02}})
    assert seconds(costs) == [0.02, 0.02, 0.05, 0.05]
    costs.replace({Stage.DENOISE: {12: 0.01}})
    assert seconds(costs) == [0.01, 0.01, 0.01, 0.05]


def test_a_request_that_only_the_old_costs_kept_out_is_let_in() -> None:
    """No tick would ever have shown the new ones: all like it were refused."""
    scheduler = Scheduler(SchedulerConfig())
    scheduler.worker_up(WorkerProfile("w0", KEY, 8, FLAT), 0.0)
    verdict = scheduler.submit(spec("a", steps=30, deadline=1.0), 0.0)
    assert isinstance(verdict, Refused)
    assert verdict.cause is Cause.DEADLINE
    scheduler.reprice("w0", {Stage.DENOISE: {1: 0.004, 3: 0.005}})
    assert isinstance(scheduler.submit(spec("b", steps=30, deadline=1.0), 0.0), Admitted)
    scheduler.worker_down("w0", 0.1)
    assert isinstance(scheduler.submit(spec("c", steps=30, deadline=1.5), 0.1), Admitted)  # it is expected back


def test_a_link_hears_of_it_and_tells_how_far_the_worker_is() -> None:
    async def scenario() -> None:
        async with rig() as here:
            (link,) = here.links
            assert link.ready is not None
            assert link.ready.progress == Preparation(0, 0)
            here.hosts[0].announce(Prepared({Stage.DENOISE: {3: 0.0005}}, Preparation(2, 9), Memory(80, 20, 3, 4)))
            await asyncio.sleep(0.001)
            assert link.ready.progress == Preparation(2, 9)
            assert here.scheduler._workers["w0"].costs.seconds(Stage.DENOISE, 3) == 0.0005
            status = _worker_status(link, None)
            assert (status.progress.done, status.progress.total) == (2, 9)
            memory = status.memory
            left = memory.total_bytes, memory.free_bytes, memory.slots_bytes, memory.weights_bytes
            assert left == (80, 20, 3, 4)
            here.hosts[0].is_listening = False
            here.hosts[0].kill()
            await asyncio.sleep(0.001)
            assert not _worker_status(link, None).HasField("progress")
            assert not _worker_status(link, None).HasField("memory")

    virtual_time.run(scenario())


def test_it_comes_over_the_wire() -> None:
    progress = worker_pb2.Progress(done=2, total=9)
    costs = [worker_pb2.BucketCost(stage=worker_pb2.STAGE_DENOISE, bucket=3, seconds=0.25)]
    memory = worker_pb2.Memory(total_bytes=80, free_bytes=20, slots_bytes=3, weights_bytes=4)
    report = worker_pb2.Report(prepared=worker_pb2.Prepared(costs=costs, progress=progress, memory=memory))
    assert report_from_wire(report) == Prepared({Stage.DENOISE: {3: 0.25}}, Preparation(2, 9), Memory(80, 20, 3, 4))
    each = [
        worker_pb2.BucketCost(stage=stage, bucket=1, seconds=0.5)
        for stage in (worker_pb2.STAGE_ENCODE, worker_pb2.STAGE_DENOISE, worker_pb2.STAGE_DECODE)
    ]
    ready = worker_pb2.Ready(slots=1, costs=each, progress=progress, memory=memory)
    heard = ready_from_wire(worker_pb2.Report(ready=ready))
    assert (heard.progress, heard.memory) == (Preparation(2, 9), Memory(80, 20, 3, 4))
