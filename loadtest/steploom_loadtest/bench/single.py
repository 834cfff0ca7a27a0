"""One request at a time on an idle service."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import grpc.aio
from rich.table import Table

from steploom_loadtest.bench.outcome import Bar, Options, Outcome
from steploom_loadtest.bench.settings import model_tables
from steploom_loadtest.open_loop import default_payload
from steploom_loadtest.stack import running
from steploom_loadtest.traces import FREE_AND_PRO, Arrival
from steploom_protos.v1 import image_pb2 as pb
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub

NAME = "single"
MAX_SERVICE_S = {3: 1.0, 35: 8.0}  # by steps, on two cores
_REPEATS = {3: 7, 35: 3}


@dataclass(frozen=True)
class Sample:
    """One request; seconds."""

    wall_s: float  # at the client
    timings: pb.Timings


def run(options: Options) -> Outcome:
    """Medians over some requests, one after the other."""
    options.say(f"{NAME}: {', '.join(f'{count} requests of {steps} steps' for steps, count in _REPEATS.items())}")
    with running(options.directory / NAME, model_tables(options), ready_s=180.0) as stack:
        samples = {
            kind.steps: asyncio.run(_one_by_one(stack.gateway, Arrival(0.0, kind.tier, kind.steps, 3, 60.0)))
            for kind in FREE_AND_PRO
        }
    figures = {f"{steps}_steps": _medians(items) for steps, items in samples.items()}
    bars = [
        Bar(f"seconds in the service for {steps} steps:", figures[f"{steps}_steps"]["total_s"], bound)
        for steps, bound in MAX_SERVICE_S.items()
    ]
    return Outcome(NAME, {"engine": options.engine, **figures}, [_table(figures)], bars)


async def _one_by_one(address: str, kind: Arrival) -> list[Sample]:
    payload = default_payload()
    clock = asyncio.get_running_loop().time
    samples = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ImageServiceStub(channel)
        await stub.Edit(payload.request(kind, 0), timeout=kind.deadline_s)  # opens connection and caches
        for seed in range(1, _REPEATS[kind.steps] + 1):
            began = clock()
            answer = await stub.Edit(payload.request(kind, seed), timeout=kind.deadline_s)
            samples.append(Sample(clock() - began, answer.timings))
    return samples


def _medians(samples: Sequence[Sample]) -> dict[str, float]:
    fields = ("queue_s", "encode_s", "denoise_s", "decode_s", "total_s")
    medians = {name: statistics.median(getattr(item.timings, name) for item in samples) for name in fields}
    return medians | {"wall_s": statistics.median(item.wall_s for item in samples)}


def _table(figures: dict[str, dict[str, float]]) -> Table:
    result = Table(title="one request on an idle service: median ms", title_justify="left")
    result.add_column("request")
    names = next(iter(figures.values()))
    for name in names:
        result.add_column(name.removesuffix("_s"), justify="right")
    for label, row in figures.items():
        result.add_row(label.replace("_", " "), *(f"{row[name] * 1000:.1f}" for name in names))
    return result
