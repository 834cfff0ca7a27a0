"""ModelStatistics: the gateway's sums and the batcher's ticks, in this protocol's terms."""

from __future__ import annotations

from steploom_gateway.catalogue import Catalogue, StageWork
from steploom_gateway.oip.names import STAGES, VERSION, step_name
from steploom_gateway.tally import Sum, Tally
from steploom_protos.inference import grpc_service_pb2 as pb


def statistics(catalogue: Catalogue, tally: Tally, stage: str) -> pb.ModelStatistics:
    """What the pipeline, or one of its steps, has done.

    Requests and their times are this gateway's since its start. A step's executions are the ticks of all workers since
    the batcher's start, and its inferences their rows: what is batched is rows of any requests.
    """
    if not stage:
        return _pipeline(catalogue, tally)
    work = catalogue.stages.get(stage, StageWork(0, 0))
    infer: Sum = getattr(tally, stage)
    waited = tally.queue if stage == STAGES[0] else Sum(infer.count)  # a job waits once, for its first tick
    success = Sum(infer.count, waited.seconds + infer.seconds)
    return _statistics(
        step_name(catalogue.model, stage), tally, inferences=work.rows, executions=work.ticks, success=success,
        queue=waited, infer=infer,
    )  # fmt: skip


def _pipeline(catalogue: Catalogue, tally: Tally) -> pb.ModelStatistics:
    done = tally.done.count
    infer = Sum(done, tally.encode.seconds + tally.denoise.seconds + tally.decode.seconds)
    result = _statistics(
        catalogue.model.name, tally, inferences=done, executions=done, success=tally.done, queue=tally.queue,
        infer=infer,
    )  # fmt: skip
    result.inference_stats.fail.CopyFrom(_duration(tally.failed))
    result.inference_stats.compute_input.CopyFrom(_duration(tally.prepare))
    result.inference_stats.compute_output.CopyFrom(_duration(tally.write))
    return result


def _statistics(
    name: str, tally: Tally, inferences: int, executions: int, success: Sum, queue: Sum, infer: Sum
) -> pb.ModelStatistics:
    return pb.ModelStatistics(
        name=name,
        version=VERSION,
        last_inference=int(1000 * tally.last_unix_s),
        inference_count=inferences,
        execution_count=executions,
        inference_stats=pb.InferStatistics(
            success=_duration(success),
            queue=_duration(queue),
            compute_input=_duration(Sum(infer.count)),
            compute_infer=_duration(infer),
            compute_output=_duration(Sum(infer.count)),
        ),
    )


def _duration(total: Sum) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=int(1e9 * total.seconds))
