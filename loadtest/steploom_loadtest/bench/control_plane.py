"""What Steploom itself costs: an engine that takes no time, and the CPU time of each process."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass

from rich.table import Table

from steploom_loadtest.bench.outcome import Options, Outcome
from steploom_loadtest.bench.settings import zero_cost_tables
from steploom_loadtest.open_loop import Payload, run_closed_loop
from steploom_loadtest.pictures import portrait, portrait_image
from steploom_loadtest.report import OK, percentile
from steploom_loadtest.stack import Stack, cpu_seconds, running
from steploom_loadtest.traces import FREE_AND_PRO, patient
from steploom_protos.v1 import image_pb2 as pb

NAME = "control-plane"
_CALLERS = (1, 8, 32)
_SIDE = 128  # pixels of the pictures that travel
_WARM_S = 1.0


@dataclass(frozen=True)
class Figures:
    """One load. CPU in microseconds."""

    payload: str
    callers: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    ticks_per_s: float
    jobs_per_tick: float
    gateway_us_per_request: float
    batcher_us_per_request: float
    batcher_us_per_tick: float
    worker_us_per_request: float


def run(options: Options) -> Outcome:
    """Closed loops of 3-step requests at rising numbers of callers, raw pixels and PNG."""
    seconds = max(2.0, min(6.0, options.seconds / 8))
    payloads = {"raw": _raw(), "png": Payload(pb.Image(encoded=portrait(_SIDE)))}
    with running(options.directory / NAME, zero_cost_tables()) as stack:
        rows = []
        for name, payload in payloads.items():
            for callers in _CALLERS:
                options.say(f"{NAME}: {callers} callers, {name} pictures, {seconds:.0f} s")
                rows.append(_measure(stack, name, payload, callers, seconds))
    return Outcome(NAME, {"loads": [asdict(row) for row in rows]}, [_table(rows)])


def _raw() -> Payload:
    image = pb.RawImage(data=portrait_image(_SIDE).tobytes(), height=_SIDE, width=_SIDE)
    return Payload(pb.Image(tensor=image), output_format=pb.IMAGE_FORMAT_RAW)


def _measure(stack: Stack, name: str, payload: Payload, callers: int, seconds: float) -> Figures:
    few = FREE_AND_PRO[0]
    kinds = [patient(few, few.deadline_s)]
    asyncio.run(run_closed_loop(stack.gateway, kinds, callers, _WARM_S, payload))
    pids = stack.pids()
    before, cpu_before = stack.status(), {service: cpu_seconds(pid) for service, pid in pids.items()}
    records = asyncio.run(run_closed_loop(stack.gateway, kinds, callers, seconds, payload))
    after, cpu_after = stack.status(), {service: cpu_seconds(pid) for service, pid in pids.items()}
    cpu_us = {service: 1e6 * (cpu_after[service] - cpu_before[service]) for service in pids}
    done = max(1, sum(record.status == OK for record in records))
    ticks = max(1, after.ticks - before.ticks)
    span_s = max(record.ended_at for record in records)
    latencies = sorted(record.latency_s for record in records if record.status == OK)
    return Figures(
        payload=name,
        callers=callers,
        requests_per_s=done / span_s,
        p50_ms=1000 * percentile(latencies, 0.5),
        p99_ms=1000 * percentile(latencies, 0.99),
        ticks_per_s=ticks / span_s,
        jobs_per_tick=done * (few.steps + 2) / ticks,
        gateway_us_per_request=cpu_us["gateway"] / done,
        batcher_us_per_request=cpu_us["batcher"] / done,
        batcher_us_per_tick=cpu_us["batcher"] / ticks,
        worker_us_per_request=cpu_us["worker-0"] / done,
    )


def _table(rows: list[Figures]) -> Table:
    result = Table(title="control plane: 3-step requests, an engine of zero cost", title_justify="left")
    result.add_column("pictures")
    result.add_column("callers", justify="right")
    names = [name for name in asdict(rows[0]) if name not in ("payload", "callers")]
    for name in names:
        result.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        figures = (getattr(row, name) for name in names)
        result.add_row(row.payload, str(row.callers), *(f"{figure:.1f}" for figure in figures))
    return result
