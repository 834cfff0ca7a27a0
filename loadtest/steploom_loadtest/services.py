"""What the services say of themselves while a load runs: counters before and after, and the ticks in between."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from steploom_batcher.types import Stage
from steploom_common.rpc import INTERNAL_OPTIONS
from steploom_loadtest.report_model import RanTick, Share, StageWork, Work
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1.batcher_pb2_grpc import BatcherStub
from steploom_protos.worker.v1 import worker_pb2

_ANSWER_S = 5.0
_LOOK_S = 0.5  # between looks at the ticks, of which the batcher keeps some thousands
_COUNTERS = ("ticks", "rows", "padding_rows", "busy_seconds")
MAX_TICKS = 200_000  # of a report; what comes later is counted as lost


class CannotLook(ConnectionError):
    """The services do not tell; the message says what was asked and why there is no answer."""


@dataclass(frozen=True)
class Counters:
    """The services' counters at a moment."""

    started: float  # seconds since the epoch: they count from there
    workers: int  # that are up
    stages: Mapping[str, Mapping[str, float]]  # by stage and counter; of all workers
    refused: Mapping[str, float]  # by cause


def read_counters(page: str) -> Counters:
    """Of the text of a metrics page.

    Raises:
        CannotLook: it has nothing of a batcher.
    """
    samples: defaultdict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
    except ValueError as error:
        raise CannotLook(f"the page of metrics cannot be read: {error}") from None
    if not samples["steploom_batcher_start_time_seconds"]:
        raise CannotLook("the page of metrics has nothing of the batcher: it may be away")
    stages: dict[str, dict[str, float]] = {stage.name.lower(): dict.fromkeys(_COUNTERS, 0.0) for stage in Stage}
    for counter in _COUNTERS:
        for labels, value in samples[f"steploom_worker_{counter}_total"]:
            stages[labels["stage"]][counter] += value
    refused: defaultdict[str, float] = defaultdict(float)
    for name in ("steploom_batcher_refused_total", "steploom_gateway_refused_total"):
        for labels, value in samples[name]:
            refused[labels["cause"]] += value
    started = samples["steploom_batcher_start_time_seconds"][0][1]
    workers = sum(value for _, value in samples["steploom_worker_up"])
    return Counters(started, int(workers), stages, dict(refused))


def work_between(before: Counters, after: Counters) -> Work:
    """What was done between two looks. All of it, where the batcher has begun anew in between."""
    is_same = before.started == after.started

    def more(new: float, old: float) -> float:
        return new - old if is_same and new >= old else new

    stages = {}
    for stage, now in after.stages.items():
        done = {name: more(now[name], before.stages.get(stage, {}).get(name, 0.0)) for name in _COUNTERS}
        stages[stage] = StageWork(
            int(done["ticks"]), int(done["rows"]), int(done["padding_rows"]), done["busy_seconds"]
        )
    refused = {cause: int(more(count, before.refused.get(cause, 0.0))) for cause, count in after.refused.items()}
    return Work(after.workers, stages, {cause: count for cause, count in refused.items() if count})


@dataclass
class Seen:
    """What `watched` has seen of a run; whole when its block is left."""

    work: Work | None = None
    ticks: list[RanTick] = field(default_factory=list)
    lost_ticks: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Watch:
    """Where the services tell; empty: they are not asked."""

    metrics: str = ""  # URL of the page
    batcher: str = ""  # address of its socket, for ticks


@asynccontextmanager
async def watched(watch: Watch, start_unix_s: Any) -> Any:
    """Looks at the services for the length of a block; yields what is `Seen`. What cannot be seen is a note, no error.

    Args:
        watch: where they tell.
        start_unix_s: called when the block is left: seconds since the epoch at which the run began.
    """
    seen = Seen()
    before = await _counters(watch, seen)
    async with _following(watch, seen) as ticks:
        yield seen
    after = await _counters(watch, seen) if before else None
    if before and after:
        seen.work = work_between(before, after)
        if before.started != after.started:
            seen.notes.append("the batcher began anew while the load ran: its figures are of the time since")
    began = start_unix_s()
    shown = (tick for answer in ticks for tick in _ran_ticks(answer, began))
    seen.ticks = sorted((tick for tick in shown if tick.end_s > 0), key=lambda tick: tick.start_s)


async def _counters(watch: Watch, seen: Seen) -> Counters | None:
    if not watch.metrics:
        return None
    try:
        return read_counters(await asyncio.to_thread(_page, watch.metrics))
    except CannotLook as error:
        seen.notes.append(str(error))
        return None


def _page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
            text: str = answer.read().decode()
            return text
    except (OSError, ValueError) as error:
        raise CannotLook(f"no metrics from {url}: {getattr(error, 'reason', error)}") from None


@asynccontextmanager
async def _following(watch: Watch, seen: Seen) -> Any:
    """Asks for ticks again and again; the answers are whole when the block is left."""
    answers: list[pb.TicksResponse] = []
    if not watch.batcher:
        yield answers
        return
    async with grpc.aio.insecure_channel(watch.batcher, INTERNAL_OPTIONS) as channel:
        stub = BatcherStub(channel)
        try:
            last = (await stub.Ticks(pb.TicksRequest(), timeout=_ANSWER_S)).last
        except grpc.aio.AioRpcError as error:
            seen.notes.append(f"no ticks from the batcher at {watch.batcher}: {error.code().name}")
            yield answers
            return
        ended = asyncio.Event()
        following = asyncio.create_task(_follow(stub, last, ended, answers, seen))
        try:
            yield answers
        finally:
            ended.set()
            await following


async def _follow(stub: Any, last: int, ended: asyncio.Event, answers: list[pb.TicksResponse], seen: Seen) -> None:
    kept = 0
    is_last = False
    while not is_last:
        is_last = await _either(ended, _LOOK_S)
        try:
            answer = await stub.Ticks(pb.TicksRequest(after=last), timeout=_ANSWER_S)
        except grpc.aio.AioRpcError:
            continue  # it may be started again
        if kept + len(answer.ticks) > MAX_TICKS:
            seen.lost_ticks += len(answer.ticks)
        else:
            kept += len(answer.ticks)
            answers.append(answer)
        seen.lost_ticks += answer.lost
        last = answer.last


async def _either(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event has come within so many seconds."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _ran_ticks(answer: pb.TicksResponse, start_unix_s: float) -> Iterator[RanTick]:
    """A job's id is that of its request, and more behind a slash."""
    for tick in answer.ticks:
        yield RanTick(
            worker=tick.worker,
            stage=worker_pb2.Stage.Name(tick.stage).removeprefix("STAGE_").lower(),
            start_s=tick.start_unix_s - start_unix_s,
            seconds=tick.seconds,
            rows=tick.rows,
            bucket=tick.bucket,
            shares=tuple(
                Share(part.job_id.rpartition("/")[0] or part.job_id, part.rows, part.step) for part in tick.parts
            ),
            is_ok=tick.status == worker_pb2.TICK_STATUS_OK,
        )
