"""`python -m steploom_benchmarks.diffusion`: pictures in time by tier, Steploom's steps beside MOSEC's requests.

Both have the embedded model, its networks and its merged adapter; both get the same traces, with the same deadlines.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from steploom_benchmarks.callers import CallError, HttpCaller
from steploom_benchmarks.environments import Missing, prepare
from steploom_benchmarks.loads import Load
from steploom_benchmarks.peers import Peer, Setting
from steploom_benchmarks.server_process import ServerProcess, end_in_order
from steploom_benchmarks.tables import table
from steploom_loadtest.open_loop import INSTRUCTION, run_open_loop
from steploom_loadtest.pictures import portrait
from steploom_loadtest.report import OK, LoadReport, Record, summarize
from steploom_loadtest.stack import running
from steploom_loadtest.traces import STUDENT_AND_PRO, Arrival, RequestClass, burst, exactly, poisson

STEPLOOM, MOSEC = "Steploom, step", "MOSEC, requests"
_MOSEC = Peer("mosec-diffusion", MOSEC, "mosec_diffusion.py", "", path="/free")
_LATE = "TOO LATE"
_SIDE = 128
_DEALS = 2  # of nine and one, at once, for the capacity
_SETTINGS = (
    Setting(4, 10.0),
    Setting(8, 10.0),
    Setting(4, 10.0, options={"a process each": True}),
)
_COLUMNS = ("load", "server", "tier", "sent", "in time", "share", "p50, s", "p95, s")

Drive = Callable[[Sequence[Arrival]], Coroutine[Any, Any, list[Record]]]
Say = Callable[[str], None]


class WrongPicture(Exception):
    """A server's pictures are no edits."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 1 where MOSEC cannot be had."""
    arguments = sys.argv[1:] if arguments is None else arguments
    end_in_order()
    given = _parser().parse_args(arguments)
    try:
        prepare("mosec")
    except Missing as error:
        print(f"diffusion: {error}", file=sys.stderr)
        return 1
    mix = _mix(given.free_deadline, given.pro_deadline)
    done: dict[str, Any] = {"command": shlex.join(["python", "-m", "steploom_benchmarks.diffusion", *arguments])}

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    capacity = given.capacity
    if not capacity:
        say(f"{STEPLOOM}: twenty requests at once, twice")
        capacity = _with_steploom(lambda drive: asyncio.run(_capacity(drive, mix)))
        say(f"{STEPLOOM}: {capacity:.2f} requests/s")
    swept = [] if given.no_sweep else _sweep(mix, capacity, given, say)
    setting = max(swept, key=lambda item: item[1])[0] if swept else _SETTINGS[0]
    traces = {load: _trace(mix, load * capacity, given.seconds) for load in given.loads}
    say(f"{len(traces)} loads of {given.seconds:g} s each, on both")
    reports = _with_steploom(
        lambda steps: _with_mosec(setting, lambda requests: _reports({STEPLOOM: steps, MOSEC: requests}, traces, say))
    )
    rows = [_row(load, name, item) for load in traces for name in reports for item in reports[name][load].classes]
    text = "\n".join(
        [
            "# Pictures in time: steps beside requests",
            "",
            f"- command: {done['command']}",
            f"- machine: {len(os.sched_getaffinity(0))} cores, load average as it ended {os.getloadavg()[0]:.1f}",
            f"- 100 %: {capacity:.2f} requests/s, nine of 3 steps to one of 35; each load for {given.seconds:g} s",
            f"- deadlines: free {given.free_deadline:g} s, pro {given.pro_deadline:g} s",
            f"- MOSEC's batches: {_words(setting)}",
            *(f"- tried at 80 %: {_words(one)}: {share:.1%} in time" for one, share in swept),
            "",
            *table(_COLUMNS, rows),
            "",
        ]
    )
    done |= {"capacity_per_s": capacity, "swept": [[_words(one), share] for one, share in swept]}
    done["reports"] = {name: {str(load): asdict(one) for load, one in each.items()} for name, each in reports.items()}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "peers-diffusion.md").write_text(text)
    (given.out / "peers-diffusion.json").write_text(json.dumps(done, indent=2) + "\n")
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench-peers-diffusion", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load; default: 30")
    parser.add_argument(
        "--loads", type=_numbers, default=(0.2, 0.5, 0.8, 1.0, 1.2), help="default: 0.2,0.5,0.8,1.0,1.2"
    )
    parser.add_argument(
        "--capacity", type=float, default=0.0, help="requests/s that are 100 %%; default: it is measured"
    )
    parser.add_argument("--free-deadline", type=float, default=3.0, help="seconds; default: 3")
    parser.add_argument("--pro-deadline", type=float, default=20.0, help="seconds; default: 20")
    parser.add_argument("--sweep-seconds", type=float, default=15.0, help="of each of MOSEC's settings; default: 15")
    parser.add_argument("--no-sweep", action="store_true", help="take the first of MOSEC's settings")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of peers-diffusion.md and .json")
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(item) for item in text.split(","))


def _mix(free_deadline_s: float, pro_deadline_s: float) -> tuple[RequestClass, RequestClass]:
    free, pro = STUDENT_AND_PRO
    return replace(free, deadline_s=free_deadline_s), replace(pro, deadline_s=pro_deadline_s)


def _trace(mix: Sequence[RequestClass], rate: float, seconds: float) -> list[Arrival]:
    return exactly(lambda drawn_s: poisson(mix, rate, drawn_s, seed=1), rate, seconds)


async def _capacity(drive: Drive, mix: Sequence[RequestClass]) -> float:
    """Requests a second where all come at once; the first time warms up."""
    all_at_once = [arrival for kind in mix for arrival in burst(replace(kind, deadline_s=600.0), kind.weight * _DEALS)]
    rates = []
    for _ in range(2):
        records = await drive(all_at_once)
        if any(record.status != OK for record in records):
            raise WrongPicture("not every request of the burst was answered")
        rates.append(len(records) / max(record.ended_at for record in records))
    return rates[-1]


def _sweep(mix: Sequence[RequestClass], capacity: float, given: argparse.Namespace, say: Say) -> list[Any]:
    trace = _trace(mix, 0.8 * capacity, given.sweep_seconds)
    swept = []
    for setting in _SETTINGS:
        report = _with_mosec(setting, lambda drive: summarize(asyncio.run(drive(trace))))
        share = sum(item.good for item in report.classes) / len(trace)
        say(f"{MOSEC}, {_words(setting)}: {share:.1%} of {len(trace)} in time at 80 %")
        swept.append((setting, share))
    return swept


def _reports(
    drives: dict[str, Drive], traces: dict[float, list[Arrival]], say: Say
) -> dict[str, dict[float, LoadReport]]:
    """Each load on one server and then at once on the other, which is idle: what else the machine does, both meet."""
    reports: dict[str, dict[float, LoadReport]] = {name: {} for name in drives}
    for load, trace in traces.items():
        for name, drive in drives.items():
            report = summarize(asyncio.run(drive(trace)))
            reports[name][load] = report
            say(f"{name}, {load:.0%}: {sum(item.good for item in report.classes)} of {len(trace)} in time")
    return reports


def _with_steploom(use: Callable[[Drive], Any]) -> Any:
    directory = Path(tempfile.mkdtemp(prefix="steploom-peer-"))
    try:
        with running(directory, {}, ready_s=180.0) as stack:

            async def drive(trace: Sequence[Arrival]) -> list[Record]:
                await asyncio.to_thread(
                    stack.wait_until, lambda status: all(worker.slots_used == 0 for worker in status.workers), 60.0
                )
                return await run_open_loop(stack.gateway, trace)

            return use(drive)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _with_mosec(setting: Setting, use: Callable[[Drive], Any]) -> Any:
    directory = Path(tempfile.mkdtemp(prefix="steploom-peer-"))
    load = Load("diffusion", "the embedded model", 0)
    try:
        with ServerProcess(_MOSEC, load, setting, directory) as server:
            asyncio.run(_check(server))
            return use(lambda trace: _drive_http(server.port, trace))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _check(server: ServerProcess) -> None:
    """Both tiers answer, and with edits of the picture that was sent."""
    for kind in STUDENT_AND_PRO:
        caller = HttpCaller(server.port, f"/{kind.tier}")
        body = _body(replace(burst(kind, 1)[0], steps=kind.steps), seed=0)
        if kind.steps <= STUDENT_AND_PRO[0].steps:
            await server.wait_ready(caller, body)
        check_picture(await caller.call(body, timeout_s=600))
        await caller.close()


def check_picture(answer: bytes) -> None:
    """Raises:
    WrongPicture: it is no picture of the size that was sent, has one colour, or is the picture that was sent.
    """
    try:
        pixels = np.asarray(Image.open(io.BytesIO(answer)).convert("RGB"), np.float32)
    except OSError as error:
        raise WrongPicture(f"{len(answer)} bytes that are no picture: {error}") from None
    sent = np.asarray(Image.open(io.BytesIO(portrait(_SIDE))).convert("RGB"), np.float32)
    if pixels.shape != sent.shape:
        raise WrongPicture(f"a picture of {pixels.shape}, where {sent.shape} was sent")
    if pixels.std() < 10:
        raise WrongPicture(f"a picture of one colour, near {pixels.mean():.0f}")
    if not 0.5 < np.abs(pixels - sent).mean() < 60:
        raise WrongPicture(f"no edit of what was sent: {np.abs(pixels - sent).mean():.1f} away from it")


def _body(arrival: Arrival, seed: int) -> bytes:
    order = {"steps": arrival.steps, "adapter": arrival.adapter, "instruction": INSTRUCTION, "seed": seed}
    return json.dumps(order).encode() + b"\n" + portrait(_SIDE)


async def _drive_http(port: int, trace: Sequence[Arrival]) -> list[Record]:
    """As `run_open_loop`; a caller goes away at its deadline, as Steploom ends its requests then."""
    clock = asyncio.get_running_loop().time
    callers = {tier: HttpCaller(port, f"/{tier}") for tier in {arrival.tier for arrival in trace}}
    began = clock()

    async def ask(arrival: Arrival, seed: int) -> Record:
        left_s = began + arrival.at + arrival.deadline_s - clock()
        status = OK
        try:
            await asyncio.wait_for(callers[arrival.tier].call(_body(arrival, seed), timeout_s=600), left_s)
        except TimeoutError:
            status = _LATE
        except CallError:
            status = "FAILED"
        return Record(arrival, status, clock() - began)

    calls = []
    for seed, arrival in enumerate(trace):
        await asyncio.sleep(max(0.0, began + arrival.at - clock()))
        calls.append(asyncio.create_task(ask(arrival, seed)))
    records = await asyncio.gather(*calls)
    for caller in callers.values():
        await caller.close()
    return records


def _words(setting: Setting) -> str:
    return f"at most {setting.max_batch}, {setting}"


def _row(load: float, name: str, item: Any) -> list[str]:
    share = item.good / max(1, item.sent)
    return [
        *(f"{load:.0%}", name, item.label, str(item.sent), str(item.good), f"{share:.0%}"),
        *(f"{item.p50_s:.2f}", f"{item.p95_s:.2f}"),
    ]


if __name__ == "__main__":
    sys.exit(main())
