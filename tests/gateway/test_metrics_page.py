"""docs/metrics.md, and the figures of a gateway, a batcher and a worker that have drawn pictures, in one scrape."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from gateway_house import House, eventually, opened, request, status_of
from live_metrics import Live, families, live, rows_of_page, scrape, value
from prometheus_client import generate_latest
from served_plain import identity_request, opened_plain

from steploom_batcher.messages import TickReport
from steploom_batcher.plain.config import PlainConfig
from steploom_batcher.plain.fake_host import INVALID, POISON, FakeHost, identity_config
from steploom_batcher.plain.statistics import CAUSES
from steploom_batcher.types import Key, Outcome, Stage, Status, Tick
from steploom_gateway.oip.metrics import _PLAIN_REASONS, REASONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "metrics.md"


async def have_all(here: Live) -> None:
    """Pictures, and an occasion for what is counted on occasions."""
    await asyncio.gather(*(here.stub.Edit(request(tier="free", steps=4)) for _ in range(3)))
    here.gateway.metrics.count_refused("rate")
    here.gateway.metrics.count_repeat("joined")
    failed = TickReport(1, Outcome(Status.FAILED))
    here.batcher.metrics.tick_done("w", Tick(1, "w", Stage.DECODE, Key("m", ()), (), 1, 1, 0.1), failed)


async def test_the_page_lists_what_is_shown_and_nothing_else(tmp_path: Path) -> None:
    host = FakeHost([identity_config()])
    await host.start(f"unix:{tmp_path}/host.sock")
    async with live(tmp_path, hosts=[f"unix:{tmp_path}/host.sock"]) as here:
        await have_all(here)
        text = await here.scrape()
    await host.stop()
    listed = {line for line in PAGE.read_text().splitlines() if line.startswith("| `")}
    assert rows_of_page(text) == listed


async def test_one_scrape_has_the_figures_of_all_services(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        await here.stub.Edit(request(tier="free", steps=4))
        await here.stub.Edit(request(tier="free", steps=4))
        await here.gateway.batcher.latest()
        text = await here.scrape()
    assert value(text, "steploom_gateway_requests_total", status="OK") == 2
    assert value(text, "steploom_batcher_submitted_total") == value(text, "steploom_batcher_ended_total") == 2
    rows = value(text, "steploom_worker_rows_total", stage="denoise")
    assert rows == value(text, "steploom_batcher_tick_rows_sum", stage="denoise") > 0
    assert value(text, "steploom_worker_ticks_total", stage="denoise") == 8
    assert value(text, "steploom_batcher_tick_seconds_count", stage="denoise") == 8
    assert value(text, "steploom_batcher_admission_slack_seconds_count", tier="free") == 2
    # of two jobs that take next to no time, in a tier that owes an answer after 20 s
    assert 20 < value(text, "steploom_batcher_admission_slack_seconds_sum", tier="free") < 40
    assert value(text, "steploom_batcher_job_measured_ratio_count", tier="free") == 2
    assert value(text, "nv_inference_request_success", model="fake") == 2
    assert value(text, "nv_inference_exec_count", model="fake.denoise") == 8
    assert value(text, "nv_inference_count", model="fake.denoise") == rows


async def test_a_batcher_that_begins_anew_counts_from_0_and_its_loss_leaves_the_rest(tmp_path: Path) -> None:
    counter = "# TYPE steploom_batcher_submitted_total counter\nsteploom_batcher_submitted_total {}\n"
    async with opened(tmp_path, metrics_listen="127.0.0.1:0") as house:
        port = house.gateway.metrics_port
        house.batcher.metrics = counter.format(7)
        assert value(await scrape(port), "steploom_batcher_submitted_total") == 7
        await house.batcher.stop()
        assert await eventually(lambda: not house.gateway.batcher.is_serving)
        text = await scrape(port)
        assert "steploom_batcher_submitted_total" not in families(text)
        assert value(text, "steploom_gateway_in_flight") == 0
        house.batcher.metrics = counter.format(0)
        await house.batcher.start()
        assert await eventually(lambda: house.gateway.batcher.is_serving)
        assert value(await scrape(port), "steploom_batcher_submitted_total") == 0


async def test_a_scrape_on_the_loop_does_not_wait_for_itself(house: House) -> None:
    house.batcher.metrics = "# TYPE steploom_batcher_x gauge\nsteploom_batcher_x 1\n"
    text = generate_latest(house.gateway.metrics.registry).decode()
    assert "steploom_gateway_in_flight" in text
    assert "steploom_batcher_x" not in text


@pytest.mark.parametrize(
    ("fields", "reason"), [({"instruction": ""}, "OTHER"), ({"tier": "gold"}, "OTHER"), ({}, "REJECTED")]
)
async def test_failures_have_tritons_reasons(house: House, fields: dict[str, Any], reason: str) -> None:
    if not fields:
        house.gateway.service.drain()
    await status_of(house.stub.Edit(request(**fields)))
    text = generate_latest(house.gateway.metrics.registry).decode()
    assert value(text, "nv_inference_request_failure", model="fake", reason=reason) == 1
    assert value(text, "nv_inference_request_failure", model="fake") == 1
    assert value(text, "nv_inference_request_success", model="fake") == 0


@pytest.mark.parametrize("queue", ["gateway", "batcher"])
async def test_plain_models_have_tritons_figures(tmp_path: Path, queue: str) -> None:
    configs = [identity_config(), identity_config("unasked")]
    async with opened_plain(tmp_path, configs, plain=PlainConfig(queue=queue), metrics_listen="127.0.0.1:0") as plain:
        plain.host.may_run.clear()
        calls = [asyncio.ensure_future(plain.stub.ModelInfer(identity_request(b"ab", rows=2)))]
        assert await eventually(lambda: len(plain.host.batches) == 1)
        others = (identity_request(b"c"), identity_request(POISON), identity_request(INVALID))
        calls += [asyncio.ensure_future(plain.stub.ModelInfer(one)) for one in others]
        assert await eventually(lambda: plain.num_requests == 4)
        text = await scrape(plain.gateway.metrics_port)
        assert value(text, "nv_inference_pending_request_count", model="identity", version="1") == 3
        assert value(text, "nv_inference_request_success", model="identity", version="1") == 0
        calls[1].cancel()
        assert await eventually(lambda: plain.num_requests == 3)
        plain.host.may_run.set()
        await asyncio.gather(*calls, return_exceptions=True)
        text = await scrape(plain.gateway.metrics_port)
    of = {"model": "identity", "version": "1"}
    assert value(text, "nv_inference_pending_request_count", **of) == 0
    assert value(text, "nv_inference_request_success", **of) == 1
    assert value(text, "nv_inference_count", **of) == 2
    assert value(text, "nv_inference_exec_count", **of) == len(plain.host.batches) == 3
    assert value(text, "nv_inference_compute_input_duration_us", **of) == 1
    assert value(text, "nv_inference_compute_infer_duration_us", **of) == 2
    assert value(text, "nv_inference_compute_output_duration_us", **of) == 3
    queued, total = (value(text, f"nv_inference_{part}_duration_us", **of) for part in ("queue", "request"))
    assert total > queued >= 0
    failures = {reason: value(text, "nv_inference_request_failure", **of, reason=reason) for reason in REASONS}
    assert failures == {"REJECTED": 0, "CANCELED": 1, "BACKEND": 1, "OTHER": 1}
    assert value(text, "nv_inference_request_success", model="unasked", version="1") == 0


def test_every_cause_has_a_reason() -> None:
    assert {cause for cause in CAUSES if cause not in _PLAIN_REASONS} == {"invalid", "too_large"}


async def test_a_request_that_was_cancelled_is_no_rejection(house: House) -> None:
    house.batcher.play(hold_at="started")
    call = house.stub.Edit(request())
    await house.batcher.reached.wait()
    call.cancel()
    assert await house.is_clean()
    text = generate_latest(house.gateway.metrics.registry).decode()
    assert value(text, "nv_inference_request_failure", reason="CANCELED") == 1
