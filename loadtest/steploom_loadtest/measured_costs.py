"""What ticks of running workers take, as a table to simulate with: from the batcher, or from the ticks of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from steploom_batcher.types import Stage, StageCosts
from steploom_loadtest.cost_tables import CostTable, DeviceCosts
from steploom_loadtest.report_model import RanTick
from steploom_protos.batcher.v1 import batcher_pb2 as pb


def table_of(status: pb.StatusResponse, source: str) -> CostTable | None:
    """The estimates that a batcher plans with, of each worker that is up; None where there is none."""
    devices = [_device(worker) for worker in status.workers if worker.is_up and worker.costs]
    return CostTable(source, devices) if devices else None


def mean_costs(ticks: Iterable[RanTick], otherwise: StageCosts) -> StageCosts:
    """The mean of the ticks of each bucket, and `otherwise` where there was none."""
    seen: Mapping[tuple[str, int], list[float]] = defaultdict(list)
    for tick in ticks:
        if tick.is_ok:
            seen[tick.stage, tick.bucket].append(tick.seconds)
    return {
        stage: {
            bucket: sum(own) / len(own) if (own := seen.get((stage.name.lower(), bucket))) else seconds
            for bucket, seconds in table.items()
        }
        for stage, table in otherwise.items()
    }


def _device(worker: pb.StatusResponse.WorkerStatus) -> DeviceCosts:
    seconds: dict[Stage, dict[int, float]] = {stage: {} for stage in Stage}
    for cost in worker.costs:
        seconds[Stage(cost.stage)][cost.bucket] = cost.seconds
    return DeviceCosts(f"{worker.engine} at {worker.address}", worker.slots, seconds)
