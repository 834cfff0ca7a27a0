"""What has been counted of plain models, as messages."""

from __future__ import annotations

from steploom_batcher.plain.driver import PlainDriver
from steploom_batcher.plain.statistics import Compute, ModelStatistics, Total
from steploom_batcher.plain.types import Version
from steploom_protos.batcher.v1 import plain_pb2 as pb


def statistics_to_wire(driver: PlainDriver) -> pb.PlainStatistics:
    """What a driver has counted, by model and version."""
    return pb.PlainStatistics(
        models=[_statistics(model, of, driver.num_queued(model)) for model, of in sorted(driver.statistics.items())]
    )


def _statistics(model: Version, of: ModelStatistics, queued: int) -> pb.PlainModelStatistics:
    return pb.PlainModelStatistics(
        name=model.name,
        version=model.number,
        last_unix_ms=of.last_unix_ms,
        rows=of.rows,
        batches=of.batches,
        success=_time(of.success),
        fail=_time(of.fail),
        queue=_time(of.queue),
        compute_input=_time(of.compute.input),
        compute_infer=_time(of.compute.infer),
        compute_output=_time(of.compute.output),
        by_rows=[_batches(rows, of.by_rows[rows]) for rows in sorted(of.by_rows)],
        ended=of.ended,
        queued=queued,
    )


def _batches(rows: int, compute: Compute) -> pb.PlainBatchTimes:
    return pb.PlainBatchTimes(
        rows=rows,
        compute_input=_time(compute.input),
        compute_infer=_time(compute.infer),
        compute_output=_time(compute.output),
    )


def _time(total: Total) -> pb.PlainTime:
    return pb.PlainTime(count=total.count, ns=total.ns)
