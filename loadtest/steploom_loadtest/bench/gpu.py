"""The whole service on one device, from its front door: saturation by mix, how busy the device is, both policies.

One worker lives as long as the benchmark, because it takes a minute to be warm; gateway and batcher in front of it are
started anew for each part, so that both policies begin with the same costs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from steploom_loadtest.bench.device import describe
from steploom_loadtest.bench.outcome import Bar, CannotRun, Options, Outcome
from steploom_loadtest.bench.saturation import Saturation, capacity, saturate
from steploom_loadtest.bench.settings import model_tables
from steploom_loadtest.lone_worker import lone_worker
from steploom_loadtest.open_loop import Payload, run_open_loop
from steploom_loadtest.pictures import portrait
from steploom_loadtest.report import ClassReport, LoadReport, summarize
from steploom_loadtest.stack import Stack, running
from steploom_loadtest.traces import Arrival, RequestClass, patient, poisson
from steploom_protos.v1 import image_pb2 as pb

NAME = "gpu"
POLICIES = ("step", "request")
MAIN_MIX = "9:1"
ANSWERS = {"jpeg": pb.IMAGE_FORMAT_JPEG, "png": pb.IMAGE_FORMAT_PNG, "raw": pb.IMAGE_FORMAT_RAW}

_WORKER_READY_S = 420.0  # model, graphs and warm-up
_STACK_READY_S = 300.0
_EMPTY_S = 120.0  # until an open loop's last request is out of the service
_CODEC_THREADS = 4

Mixes = Mapping[str, Sequence[RequestClass]]
Reports = Mapping[float, Mapping[str, LoadReport]]  # by load, then policy


def run(options: Options) -> Outcome:
    """Saturates the service with each mix, then sends the same open-loop traces under both policies.

    Raises:
        CannotRun: there is no such device, or no model with an adapter.
    """
    adapter = _adapter(options)
    device = {} if options.is_fake else describe(options.on_device.device)
    options.say(f"{NAME}: starting a worker on {device.get('device', 'no device')}")
    began = time.monotonic()
    with lone_worker(options.directory / "worker", _worker_tables(options), _WORKER_READY_S) as worker:
        ready_s = time.monotonic() - began
        options.say(f"{NAME}: the worker is warm after {ready_s:.0f} s")
        mixes = _mixes(options, adapter)
        saturations, payload = _saturations(options, worker, mixes)
        alone = {patient(mixes[name][0]).label: saturations[name] for name in ("free", "pro")}
        rate = capacity(mixes[MAIN_MIX], saturations[MAIN_MIX], alone)
        reports = _policies(options, worker, mixes[MAIN_MIX], rate, payload)
    figures = {
        "engine": options.engine,
        "options": asdict(options.on_device),
        "worker_ready_s": ready_s,
        "saturation": {name: {"pictures_per_s": found.rate, **asdict(found)} for name, found in saturations.items()},
        "capacity_per_s": rate,
        "policies": {load: {name: asdict(found) for name, found in row.items()} for load, row in reports.items()},
    }
    failed = sum(found.failed for found in saturations.values())
    bar = Bar("requests that were refused or failed while the service was saturated:", failed, 0)
    tables = [_pictures_table(saturations), _device_table(saturations), _policies_table(rate, reports)]
    return Outcome(NAME, figures, tables, [bar], device)


# Settings


def _adapter(options: Options) -> str:
    """The one that draws the free tier's pictures."""
    if options.is_fake:
        return options.on_device.adapter or "few-step"
    root = Path(options.model or "no model given")
    hint = f"python -m steploom_engine_worker.tiny_model {options.model or 'DIR'} --adapter few-step"
    if not (root / "model_index.json").is_file():
        raise CannotRun(f"--model: {root}: no model directory; one of full size with random weights: {hint}")
    manifest = root / "steploom.json"
    listed = json.loads(manifest.read_text()).get("adapters", []) if manifest.is_file() else []
    wanted = options.on_device.adapter or next(iter(listed), "")
    if wanted not in listed:
        raise CannotRun(f"--model: {root} lists no adapter {wanted}; a model of random weights with one: {hint}")
    return wanted


def _worker_tables(options: Options) -> dict[str, Mapping[str, Any]]:
    asked = options.on_device
    tables = model_tables(options)
    worker = {**tables["worker"], "slots": asked.slots}
    if asked.rows:
        worker["denoise_buckets"] = list(asked.rows)
    if not options.is_fake:
        dtype = asked.dtype or ("float32" if asked.device == "cpu" else "float16")
        # nothing is recorded beside what is measured
        worker |= {"device": asked.device, "dtype": dtype, "record_all": True}
    return {**tables, "worker": worker}


def _stack(options: Options, name: str, worker: str, policy: str) -> AbstractContextManager[Stack]:
    asked = options.on_device
    tiers = {
        "free": {"steps": asked.free_steps, "weight": 1.0, "deadline_s": asked.free_deadline_s},
        "pro": {"steps": asked.pro_steps, "weight": 2.0, "deadline_s": asked.pro_deadline_s},
    }
    tables = {
        "gateway": {"codec_threads": _CODEC_THREADS, "arena_blocks": max(64, asked.callers)},
        "batcher": {"policy": policy, "workers": [worker], "tiers": tiers},
    }
    return running(options.directory / name, tables, _STACK_READY_S)


def _mixes(options: Options, adapter: str) -> Mixes:
    asked = options.on_device
    free = RequestClass("free", asked.free_steps, rows=1, deadline_s=asked.free_deadline_s, adapter=adapter)
    pro = RequestClass("pro", asked.pro_steps, deadline_s=asked.pro_deadline_s)
    return {"free": [free], "pro": [pro], MAIN_MIX: [replace(free, weight=9), pro], "1:1": [free, pro]}


def _payload(options: Options, side: int) -> Payload:
    return Payload(pb.Image(encoded=portrait(side)), output_format=ANSWERS[options.on_device.answer])


# Measuring


def _saturations(options: Options, worker: str, mixes: Mixes) -> tuple[dict[str, Saturation], Payload]:
    found = {}
    with _stack(options, "saturated", worker, "step") as stack:
        payload = _payload(options, stack.status().model.height)
        for name, mix in mixes.items():
            found[name] = saturate(stack, mix, options.on_device.callers, options.seconds, payload)
            share = found[name].device
            options.say(
                f"{NAME}: {name}: {found[name].rate:.2f} pictures/s, {share.rows_per_tick:.1f} rows a tick of "
                f"{share.tick_ms:.1f} ms, busy {share.busy:.1%}"
            )
    return found, payload


def _policies(
    options: Options, worker: str, mix: Sequence[RequestClass], rate: float, payload: Payload
) -> dict[float, dict[str, LoadReport]]:
    traces = {load: poisson(mix, load * rate, options.seconds, options.seed) for load in options.on_device.loads}
    reports: dict[float, dict[str, LoadReport]] = {load: {} for load in traces}
    for policy in POLICIES:
        with _stack(options, policy, worker, policy) as stack:
            for load, trace in traces.items():
                report = reports[load][policy] = _load(stack, trace, payload)
                options.say(
                    f"{NAME}: {policy} at {load:.0%} of {rate:.2f} requests/s: {report.goodput:.2f} in time a second"
                )
    return reports


def _load(stack: Stack, trace: Sequence[Arrival], payload: Payload) -> LoadReport:
    stack.wait_until(lambda status: all(worker.slots_used == 0 for worker in status.workers), _EMPTY_S)
    return summarize(asyncio.run(run_open_loop(stack.gateway, trace, payload)))


# Tables


def _pictures_table(saturations: Mapping[str, Saturation]) -> Table:
    table = _table("saturated: pictures", ("mix", "class"), ("pictures/s", "p50 s", "p95 s", "p99 s", "rows a tick"))
    for name, found in saturations.items():
        for item in found.classes:
            figures = (found.rate_of(item.label), item.p50_s, item.p95_s, item.p99_s)
            table.add_row(name, item.label, *(f"{figure:.2f}" for figure in figures), f"{item.mean_rows_per_tick:.1f}")
    return table


def _device_table(saturations: Mapping[str, Saturation]) -> Table:
    columns = ("pictures/s", "rows a tick", "padding", "ms a tick", "ms a row", "busy", "denoise", "encode, decode")
    table = _table("saturated: the device", ("mix",), (*columns, "gap p50 ms", "gap p99 ms"))
    for name, found in saturations.items():
        share = found.device
        table.add_row(
            name,
            f"{found.rate:.2f}",
            f"{share.rows_per_tick:.1f}",
            f"{share.padding_share:.1%}",
            f"{share.tick_ms:.2f}",
            f"{share.row_ms:.2f}",
            f"{share.busy:.1%}",
            f"{share.denoise_busy:.1%}",
            f"{share.others_busy:.1%}",
            f"{share.gap_p50_ms:.2f}",
            f"{share.gap_p99_ms:.2f}",
        )
    return table


def _policies_table(rate: float, reports: Reports) -> Table:
    title = f"step beside request: {MAIN_MIX} at shares of {rate:.2f} requests/s, open loop"
    columns = ("sent", "in time", "in time/s", "p50 s", "p95 s", "p99 s", "sent late by ms")
    table = _table(title, ("load", "policy", "class"), columns)
    for load, by_policy in reports.items():
        for policy, report in by_policy.items():
            for item in report.classes:
                table.add_row(f"{load:.0%}", policy, item.label, *_goodput(item, report))
    return table


def _goodput(item: ClassReport, report: LoadReport) -> list[str]:
    seconds = (item.p50_s, item.p95_s, item.p99_s)
    share, rate = item.good / item.sent, item.good / report.seconds
    figures = [f"{share:.1%}", f"{rate:.2f}", *(f"{figure:.2f}" for figure in seconds)]
    return [str(item.sent), *figures, f"{1000 * report.max_lag_s:.0f}"]


def _table(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name)
    for name in figures:
        table.add_column(name, justify="right")
    return table
