"""One request at a time on an idle service."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc.aio
from rich.table import Table

from steploom_common.adapter import NONE
from steploom_loadtest.bench.outcome import Bar, Options, Outcome
from steploom_loadtest.bench.settings import model_tables
from steploom_loadtest.open_loop import Payload
from steploom_loadtest.stack import running
from steploom_loadtest.traces import FREE_AND_PRO, STUDENT_AND_PRO, RequestClass, patient
from steploom_protos.v1 import image_pb2 as pb
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub

NAME = "single"
FEW, MANY = FREE_AND_PRO
STUDENT = STUDENT_AND_PRO[0]
KINDS = {"3 steps, few-step": STUDENT, "3 steps": FEW, "35 steps": MANY}
MAX_SERVICE_S = {"3 steps": 1.0, "35 steps": 8.0}  # on two cores
MIN_GAIN = 12.0  # of the student's 3 rows over the model's 105
_REPEATS = {STUDENT: 11, FEW: 7, MANY: 3}


@dataclass(frozen=True)
class Sample:
    """One request; seconds."""

    wall_s: float  # at the client
    timings: pb.Timings


def run(options: Options) -> Outcome:
    """Medians over some requests, one after the other."""
    with running(options.directory / NAME, model_tables(options), ready_s=180.0) as stack:
        adapters = {item.name for item in stack.status().model.adapters}
        kinds = {label: kind for label, kind in KINDS.items() if kind.adapter in (NONE, *adapters)}
        options.say(f"{NAME}: {', '.join(f'{_REPEATS[kind]} requests of {label}' for label, kind in kinds.items())}")
        figures = {label: _medians(asyncio.run(_one_by_one(stack.gateway, kind))) for label, kind in kinds.items()}
    return Outcome(NAME, {"engine": options.engine, **figures}, [_table(figures)], _bars(options, figures))


def _bars(options: Options, figures: Mapping[str, Mapping[str, float]]) -> list[Bar]:
    total = {label: row["total_s"] for label, row in figures.items()}
    bars = [Bar(f"seconds in the service for {label}:", total[label], bound) for label, bound in MAX_SERVICE_S.items()]
    student, teacher = (next(label for label in KINDS if KINDS[label] is kind) for kind in (STUDENT, MANY))
    if student in total and not options.is_fake:
        gain = total[teacher] / total[student]
        bars.append(Bar(f"seconds for {teacher} over those for {student}:", gain, MIN_GAIN, at_most=False))
    return bars


async def _one_by_one(address: str, kind: RequestClass) -> list[Sample]:
    payload, arrival = Payload(), patient(kind)
    clock = asyncio.get_running_loop().time
    samples = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ImageServiceStub(channel)
        await stub.Edit(payload.request(arrival, 0), timeout=arrival.deadline_s)  # opens connection and caches
        for seed in range(1, _REPEATS[kind] + 1):
            began = clock()
            answer = await stub.Edit(payload.request(arrival, seed), timeout=arrival.deadline_s)
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
