"""What serving a plain model costs: CPU time of all services a request, beside a bare gRPC server in the same run."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc.aio
from rich.table import Table

from steploom_loadtest.bench.echo import MESSAGE_OPTIONS
from steploom_loadtest.bench.outcome import Bar, CannotRun, Options, Outcome
from steploom_loadtest.child import Child
from steploom_loadtest.report import percentile
from steploom_loadtest.stack import cpu_seconds, running
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import grpc_service_pb2_grpc

NAME = "plain"
_MODELS = Path(__file__).parents[3] / "examples" / "plain-models"
_CALLERS = 64
_ROUNDS = 5  # of both servers in turn, so that what else the machine does meets both
_PAYLOADS = {"1 KB": 1024, "512x512x3": 512 * 512 * 3}  # bytes of a request's tensor
_MAX_RATIO = 1.5
_WARM_REQUESTS = 2 * _CALLERS


@dataclass(frozen=True)
class Measured:
    """One load on one server."""

    cpu_us: float  # of all its processes, a request
    requests_per_s: float
    p50_ms: float


def run(options: Options) -> Outcome:
    """The identity model in a closed loop of 64 callers, and the bare server in turn with it.

    Raises:
        CannotRun: the example models are not here.
    """
    if not _MODELS.is_dir():
        raise CannotRun(f"{_MODELS} is not there: the example models come with the repository")
    folder = options.directory / NAME
    folder.mkdir(parents=True, exist_ok=True)
    echo = Child("the bare server", ("-m", "steploom_loadtest.bench.echo"), folder / "echo.log")
    try:
        echo.wait(lambda: "port " in echo.log, 60.0, "has no port")
        bare = f"127.0.0.1:{re.findall(r'port ([0-9]+)', echo.log)[0]}"
        tables = {"plain": {"models": str(_MODELS)}, "up": {"workers": 0}}
        with running(folder, tables) as stack:
            pids = stack.pids()
            seconds = max(1.0, options.seconds / (2 * _ROUNDS * len(_PAYLOADS)))
            loads = {}
            for name, num_bytes in _PAYLOADS.items():
                options.say(f"{NAME}: {name}, {_ROUNDS} rounds of {seconds:.0f} s each")
                rounds = [
                    (
                        asyncio.run(_load(bare, [echo.pid], num_bytes, seconds)),
                        asyncio.run(_load(stack.gateway, list(pids.values()), num_bytes, seconds)),
                    )
                    for _ in range(_ROUNDS)
                ]
                loads[name] = rounds
    finally:
        echo.kill()
    ratios = {
        name: statistics.median(ours.cpu_us / bare.cpu_us for bare, ours in rounds) for name, rounds in loads.items()
    }
    figures = {
        name: {"ratio": ratios[name], "rounds": [[asdict(bare), asdict(ours)] for bare, ours in rounds]}
        for name, rounds in loads.items()
    }
    bars = [Bar(f"CPU a request over the bare server's, {name}", ratio, _MAX_RATIO) for name, ratio in ratios.items()]
    return Outcome(NAME, figures, [_table(loads, ratios)], bars)


async def _load(address: str, pids: Sequence[int], num_bytes: int, seconds: float) -> Measured:
    request = pb.ModelInferRequest(model_name="identity", raw_input_contents=[bytes(num_bytes)])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, num_bytes // 4])
    latencies: list[float] = []

    async with grpc.aio.insecure_channel(address, MESSAGE_OPTIONS) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def caller(until: float) -> None:
            while time.perf_counter() < until:
                began = time.perf_counter()
                answer = await stub.ModelInfer(request)
                latencies.append(time.perf_counter() - began)
                assert len(answer.raw_output_contents[0]) == num_bytes

        await asyncio.gather(*(stub.ModelInfer(request) for _ in range(_WARM_REQUESTS)))
        before, began = sum(map(cpu_seconds, pids)), time.perf_counter()
        await asyncio.gather(*(caller(began + seconds) for _ in range(_CALLERS)))
        cpu_s, span_s = sum(map(cpu_seconds, pids)) - before, time.perf_counter() - began
    done = len(latencies)
    return Measured(1e6 * cpu_s / done, done / span_s, 1000 * percentile(sorted(latencies), 0.5))


def _table(loads: dict[str, list[tuple[Measured, Measured]]], ratios: dict[str, float]) -> Table:
    table = Table("tensor", "server", "CPU us a request", "requests/s", "p50 ms", "ratio", title=NAME)
    for name, rounds in loads.items():
        for server, column in (("bare gRPC", 0), ("Steploom", 1)):
            of = [pair[column] for pair in rounds]
            table.add_row(
                name,
                server,
                f"{statistics.median(item.cpu_us for item in of):.0f}",
                f"{statistics.median(item.requests_per_s for item in of):.0f}",
                f"{statistics.median(item.p50_ms for item in of):.1f}",
                f"{ratios[name]:.2f}" if column else "",
            )
    return table
