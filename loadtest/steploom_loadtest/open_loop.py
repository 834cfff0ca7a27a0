"""Load on a live gateway over gRPC.

Open loop: each request of a trace goes out at its moment, whatever became of the others, and its latency counts from
that moment, so that a slow service cannot slow down the measurement (no coordinated omission). Closed loop: so many
callers, each of which waits for its answer.
"""

from __future__ import annotations

import asyncio
import itertools
from asyncio import Task
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio

from steploom_common.adapter import NONE
from steploom_loadtest.pictures import portrait
from steploom_loadtest.refusals import cause_of
from steploom_loadtest.report import CANCELLED, INTERRUPTED, OK, Record
from steploom_loadtest.target import Target, connected
from steploom_loadtest.traces import Arrival
from steploom_protos.v1 import image_pb2 as pb

INSTRUCTION = "put on sunglasses"

OnRecord = Callable[[Record], None]
Metadata = tuple[tuple[str, str], ...]
End = pb.EditResponse | grpc.aio.AioRpcError | None  # None: cancelled by plan


@dataclass(frozen=True)
class Payload:
    """What every request carries."""

    image: pb.Image | None = None  # None: a portrait of the size that the arrival says
    instruction: str = INSTRUCTION
    output_format: pb.ImageFormat = pb.IMAGE_FORMAT_PNG
    model: str = ""  # empty: the one that is served

    def request(self, arrival: Arrival, seed: int) -> pb.EditRequest:
        """Without a distilled adapter the model's default guidance takes three rows a step, no guidance at all one."""
        request = pb.EditRequest(
            image=self.image or pb.Image(encoded=portrait(arrival.side)),
            instruction=self.instruction,
            tier=arrival.tier,
            model=self.model,
            steps=arrival.steps,
            seed=seed,
            output_format=self.output_format,
            adapter=arrival.adapter,
        )
        if arrival.rows == 1 and arrival.adapter == NONE:
            request.guidance_scale = request.image_guidance_scale = 1.0
        return request


async def run_open_loop(
    target: Target | str,
    trace: Sequence[Arrival],
    payload: Payload | None = None,
    *,
    channels: int = 2,
    on_begin: Callable[[], None] | None = None,
    on_record: OnRecord | None = None,
    stop: asyncio.Event | None = None,
) -> list[Record]:
    """Sends every request of `trace` at its moment; returns what became of each, in the order of the trace.

    Args:
        target: the gateway; a mere address: host:port of one without certificates and tokens.
        trace: arrivals in order of time.
        payload: picture and instruction.
        channels: connections to spread the requests over.
        on_begin: called when the connections are there and the trace begins.
        on_record: hears of each end as it comes.
        stop: once set, nothing more is sent, and what is open ends as INTERRUPTED.

    Raises:
        Unreachable: nobody answers.
    """
    target = _target(target)
    payload, metadata = payload or Payload(), target.metadata
    for side in {arrival.side for arrival in trace}:
        portrait(side)  # not at the moment of sending
    async with connected(target, channels) as stubs:
        clock = asyncio.get_running_loop().time
        start = clock()
        if on_begin is not None:
            on_begin()
        calls: list[Task[Record]] = []

        async def send() -> None:
            for seed, (arrival, stub) in enumerate(zip(trace, stubs, strict=False)):
                await asyncio.sleep(start + arrival.at - clock())
                request = payload.request(arrival, seed)
                call = _call(stub, request, arrival, lambda: clock() - start, metadata, on_record)
                calls.append(asyncio.create_task(call))
            await asyncio.gather(*calls)

        await _until(send(), stop, calls)
        ended_at = clock() - start
        ends = await asyncio.gather(*calls, return_exceptions=True)
        return [
            Record(arrival, INTERRUPTED, ended_at) if isinstance(end, asyncio.CancelledError) else _checked(end)
            for arrival, end in zip(trace, ends, strict=False)  # those that were not sent are in no record
        ]


async def run_closed_loop(
    target: Target | str,
    kinds: Sequence[Arrival],
    callers: int,
    seconds: float,
    payload: Payload | None = None,
    *,
    channels: int = 2,
    on_record: OnRecord | None = None,
) -> list[Record]:
    """`callers` requests are open at any time for `seconds`; those that are open then run to their end.

    Args:
        kinds: what is asked for, in turn; `at` is ignored.
        on_record: hears of each end as it comes.
    """
    target = _target(target)
    async with connected(target, channels) as stubs:
        clock = asyncio.get_running_loop().time
        start = clock()
        payload, metadata = payload or Payload(), target.metadata
        turns = zip(itertools.count(), itertools.cycle(kinds), stubs, strict=False)
        records: list[Record] = []

        async def caller() -> None:
            while clock() - start < seconds:
                seed, kind, stub = next(turns)
                arrival = replace(kind, at=clock() - start)
                request = payload.request(arrival, seed)
                records.append(await _call(stub, request, arrival, lambda: clock() - start, metadata, on_record))

        await asyncio.gather(*(caller() for _ in range(callers)))
        return records


async def _call(
    stub: Any,
    request: pb.EditRequest,
    arrival: Arrival,
    now: Callable[[], float],
    metadata: Metadata,
    on_record: OnRecord | None,
) -> Record:
    lag_s = max(0.0, now() - arrival.at)
    call = stub.Edit(request, timeout=max(0.001, arrival.deadline_s - lag_s), metadata=metadata)
    record = _record(arrival, await _end_of(call, arrival.cancel_after_s), now(), lag_s)
    if on_record is not None:
        on_record(record)
    return record


def _record(
    arrival: Arrival, end: pb.EditResponse | grpc.aio.AioRpcError | None, ended_at: float, lag_s: float
) -> Record:
    if end is None:
        return Record(arrival, CANCELLED, ended_at, lag_s=lag_s)
    if isinstance(end, grpc.aio.AioRpcError):
        return Record(arrival, end.code().name, ended_at, lag_s=lag_s, cause=cause_of(end), message=end.details() or "")
    times = end.timings
    return Record(
        arrival, OK, ended_at, times.queue_s, times.mean_rows_per_tick, times.ticks, lag_s, request_id=end.request_id
    )


async def _end_of(call: Any, cancel_after_s: float | None) -> End:
    """The answer, the error, or nothing of a call that was cancelled by plan."""
    answer = asyncio.ensure_future(call)
    try:
        await asyncio.wait({answer}, timeout=cancel_after_s)
    finally:  # of its time, of its run, or of none
        if not answer.done():
            call.cancel()
            await asyncio.wait({answer})  # gRPC's own tasks end with it
    if answer.cancelled():
        return None
    error = answer.exception()
    if isinstance(error, grpc.aio.AioRpcError):
        return error
    response: pb.EditResponse = answer.result()
    return response


async def _until(work: Coroutine[Any, Any, None], stop: asyncio.Event | None, calls: Iterable[Task[Record]]) -> None:
    """Runs `work` to its end, or until it is to stop; then nothing of it and of `calls` goes on."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait()) if stop is not None else None
    try:
        await asyncio.wait({task for task in (working, stopping) if task}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, stopping, *calls):
            if task is not None:
                task.cancel()


def _checked(end: Record | BaseException) -> Record:
    if isinstance(end, BaseException):
        raise end
    return end


def _target(target: Target | str) -> Target:
    return Target(target) if isinstance(target, str) else target
