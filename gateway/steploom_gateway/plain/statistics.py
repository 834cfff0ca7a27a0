"""ModelStatistics of plain models: the batcher's sums in this protocol's words."""

from __future__ import annotations

from steploom_protos.batcher.v1 import plain_pb2 as batcher_pb
from steploom_protos.inference import grpc_service_pb2 as pb


def statistics(of: batcher_pb.PlainModelStatistics) -> pb.ModelStatistics:
    """Of one version of a model, since the batcher's start."""
    return pb.ModelStatistics(
        name=of.name,
        version=str(of.version),
        last_inference=of.last_unix_ms,
        inference_count=of.rows,
        execution_count=of.batches,
        inference_stats=pb.InferStatistics(
            success=_duration(of.success),
            fail=_duration(of.fail),
            queue=_duration(of.queue),
            compute_input=_duration(of.compute_input),
            compute_infer=_duration(of.compute_infer),
            compute_output=_duration(of.compute_output),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=batch.rows,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for batch in of.by_rows
        ],
    )


def _duration(total: batcher_pb.PlainTime) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=total.ns)
