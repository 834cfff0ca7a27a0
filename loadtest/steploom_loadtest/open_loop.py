"""Load on a live gateway over gRPC.

Open loop: each request of a trace goes out at its moment, whatever became of the others, and its latency counts from
that moment, so that a slow service cannot slow down the measurement (no coordinated omission). Closed loop: so many
callers, each of which waits for its answer.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio

from steploom_common.adapter import NONE
from steploom_loadtest.pictures import portrait
from steploom_loadtest.report import CANCELLED, OK, Record
from steploom_loadtest.traces import Arrival
from steploom_protos.v1 import image_pb2 as pb
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub

INSTRUCTION = "put on sunglasses"

# a connection of its own for each channel, whose calls share nothing with the others'
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 * 2**20),
)

OnRecord = Callable[[Record], None]


@dataclass(frozen=True)
class Payload:
    """What every request carries."""

    image: pb.Image
    instruction: str = INSTRUCTION
    output_format: pb.ImageFormat = pb.IMAGE_FORMAT_PNG

    def request(self, arrival: Arrival, seed: int) -> pb.EditRequest:
        """Without a distilled adapter the model's default guidance takes three rows a step, no guidance at all one."""
        request = pb.EditRequest(
            image=self.image,
            instruction=self.instruction,
            tier=arrival.tier,
            steps=arrival.steps,
            seed=seed,
            output_format=self.output_format,
            adapter=arrival.adapter,
        )
        if arrival.rows == 1 and arrival.adapter == NONE:
            request.guidance_scale = request.image_guidance_scale = 1.0
        return request


def default_payload() -> Payload:
    """A small PNG in, PNG out."""
    return Payload(pb.Image(encoded=portrait()))


async def run_open_loop(
    address: str,
    trace: Sequence[Arrival],
    payload: Payload | None = None,
    *,
    channels: int = 2,
    on_record: OnRecord | None = None,
) -> list[Record]:
    """Sends every request of `trace` at its moment; returns what became of each, in the order of the trace.

    Args:
        address: host:port of the gateway.
        trace: arrivals in order of time.
        payload: picture and instruction.
        channels: connections to spread the requests over.
        on_record: hears of each end as it comes.
    """
    async with _stubs(address, channels) as stubs:
        clock = asyncio.get_running_loop().time
        start = clock()
        payload = payload or default_payload()
        calls = []
        for seed, (arrival, stub) in enumerate(zip(trace, stubs, strict=False)):
            await asyncio.sleep(start + arrival.at - clock())
            call = _call(stub, payload.request(arrival, seed), arrival, lambda: clock() - start, on_record)
            calls.append(asyncio.create_task(call))
        return list(await asyncio.gather(*calls))


async def run_closed_loop(
    address: str,
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
    async with _stubs(address, channels) as stubs:
        clock = asyncio.get_running_loop().time
        start = clock()
        payload = payload or default_payload()
        turns = zip(itertools.count(), itertools.cycle(kinds), stubs, strict=False)
        records: list[Record] = []

        async def caller() -> None:
            while clock() - start < seconds:
                seed, kind, stub = next(turns)
                arrival = replace(kind, at=clock() - start)
                request = payload.request(arrival, seed)
                records.append(await _call(stub, request, arrival, lambda: clock() - start, on_record))

        await asyncio.gather(*(caller() for _ in range(callers)))
        return records


async def _call(
    stub: Any, request: pb.EditRequest, arrival: Arrival, now: Callable[[], float], on_record: OnRecord | None
) -> Record:
    lag_s = max(0.0, now() - arrival.at)
    call = stub.Edit(request, timeout=max(0.001, arrival.deadline_s - lag_s))
    status, timings = await _outcome(call, arrival.cancel_after_s)
    record = Record(arrival, status, now(), timings.queue_s, timings.mean_rows_per_tick, timings.ticks, lag_s)
    if on_record is not None:
        on_record(record)
    return record


async def _outcome(call: Any, cancel_after_s: float | None) -> tuple[str, pb.Timings]:
    try:
        if cancel_after_s is None:
            return OK, (await call).timings
        return await _or_cancel(call, call, cancel_after_s)
    except grpc.aio.AioRpcError as error:
        return error.code().name, pb.Timings()


async def _or_cancel(call: Any, answer: Awaitable[pb.EditResponse], seconds: float) -> tuple[str, pb.Timings]:
    waiting = asyncio.ensure_future(answer)
    await asyncio.wait({waiting}, timeout=seconds)
    if not waiting.done():
        call.cancel()
        await asyncio.wait({waiting})
    if waiting.cancelled():
        return CANCELLED, pb.Timings()
    return OK, waiting.result().timings


@asynccontextmanager
async def _stubs(address: str, count: int) -> Any:
    """Stubs without end, in turn over `count` connections."""
    channels = [grpc.aio.insecure_channel(address, _OPTIONS) for _ in range(count)]
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        yield _in_turn([ImageServiceStub(channel) for channel in channels])
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def _in_turn(stubs: Sequence[Any]) -> Iterator[Any]:
    return itertools.cycle(stubs)
