"""What is counted and logged."""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway_house import House, eventually, late_status_of, opened, request, status_of
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from steploom_gateway.metrics import Metrics
from steploom_gateway.observation import Observation, late_from
from steploom_protos.v1 import image_pb2


@pytest.fixture
async def metered(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path, metrics_listen="127.0.0.1:0") as house:
        yield house


def value(text: str, name: str, **labels: str) -> float:
    """A sample of the Prometheus text; 0 where it is absent."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


async def scrape(house: House) -> str:
    def get() -> bytes:
        address = f"http://127.0.0.1:{house.gateway.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=60) as answer:
            return bytes(answer.read())

    return (await asyncio.to_thread(get)).decode()


async def test_requests_are_counted_by_method_tier_and_status(metered: House) -> None:
    await metered.stub.Edit(request(tier="free"))
    async for _ in metered.stub.EditStream(request()):
        pass
    await status_of(metered.stub.Edit(request(tier="gold")))
    await status_of(metered.stub.Edit(request(tier="free", instruction="")))
    text = await scrape(metered)
    name = "steploom_gateway_requests_total"
    assert value(text, name, method="Edit", tier="free", status="OK") == 1
    assert value(text, name, method="EditStream", tier="pro", status="OK") == 1
    assert value(text, name, method="Edit", tier="-", status="NOT_FOUND") == 1
    assert value(text, name, method="Edit", tier="-", status="INVALID_ARGUMENT") == 1
    assert "gold" not in text  # names from outside would grow the metrics without bound


async def test_times_of_stages_and_codec(metered: House) -> None:
    await metered.stub.Edit(request(tier="free"))
    text = await scrape(metered)
    stage = "steploom_gateway_stage_seconds"
    assert value(text, f"{stage}_sum", tier="free", stage="denoise") == pytest.approx(0.03)
    assert value(text, f"{stage}_count", tier="free", stage="total") == 1
    for operation in ("decode", "encode"):
        assert value(text, "steploom_gateway_codec_seconds_count", operation=operation) == 1


async def test_gauges_follow_open_edits(metered: House) -> None:
    metered.batcher.play(hold_at="started")
    call = metered.stub.Edit(request())
    await metered.batcher.reached.wait()
    text = await scrape(metered)
    assert value(text, "steploom_gateway_in_flight") == 1
    assert value(text, "steploom_gateway_arena_blocks_used") == 1
    assert value(text, "steploom_gateway_batcher_up") == 1
    call.cancel()
    assert await metered.is_clean()
    text = await scrape(metered)
    assert value(text, "steploom_gateway_in_flight") == 0
    assert value(text, "steploom_gateway_arena_blocks_used") == 0
    assert value(text, "steploom_gateway_requests_total", tier="pro", status="CANCELLED") == 1
    await metered.batcher.stop()
    assert await eventually(lambda: not metered.gateway.batcher.is_serving)
    assert value(await scrape(metered), "steploom_gateway_batcher_up") == 0


async def test_one_line_for_each_request_without_its_content(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "steploom_gateway.access")
    await house.stub.Edit(request(tier="free", request_id="r-1", instruction="a secret wish"))
    await status_of(house.stub.Edit(request(request_id="r-2\nforged line", tier="gold")))
    await status_of(house.stub.Edit(request(request_id="r-3", tier="gold")))
    lines = [record.getMessage() for record in caplog.records if record.name == "steploom_gateway.access"]
    assert len(lines) == 3
    assert lines[0].startswith("Edit request_id=r-1 tier=free status=OK ms=")
    assert lines[1].startswith("Edit request_id=- tier=- status=INVALID_ARGUMENT ms=")
    assert lines[2].startswith("Edit request_id=r-3 tier=- status=NOT_FOUND ms=")
    assert not any("secret" in line or "forged" in line for line in lines)


async def test_stages_of_unfinished_edits_are_not_counted(metered: House) -> None:
    await status_of(metered.stub.Edit(request(image=image_pb2.Image())))
    assert value(await scrape(metered), "steploom_gateway_stage_seconds_count") == 0


async def test_a_missed_deadline_is_told_from_a_cancel(metered: House) -> None:
    metered.batcher.play(hold_at="started")
    # the time that is left as gRPC sends it: this caller does not look at the clock, so the gateway alone ends the call
    await late_status_of(
        metered,
        lambda seconds: metered.stub.Edit(request(tier="free"), metadata=[("grpc-timeout", f"{1000 * seconds:.0f}m")]),
    )
    assert await metered.is_clean()
    text, name = await scrape(metered), "steploom_gateway_requests_total"
    assert value(text, name, tier="free", status="DEADLINE_EXCEEDED") >= 1
    assert value(text, name, tier="free", status="CANCELLED") == 0


@pytest.mark.parametrize(
    ("left_s", "status"),
    [(None, "CANCELLED"), (60.0, "CANCELLED"), (0.005, "DEADLINE_EXCEEDED"), (-1.0, "DEADLINE_EXCEEDED")],
)
def test_a_call_that_ends_about_its_deadline_has_missed_it(left_s: float | None, status: str) -> None:
    metrics = Metrics()
    deadline_unix_s = 0.0 if left_s is None else time.time() + left_s
    with pytest.raises(asyncio.CancelledError), Observation(metrics, "Edit", deadline_unix_s):
        raise asyncio.CancelledError
    text = generate_latest(metrics.registry).decode()
    assert value(text, "steploom_gateway_requests_total", status=status) == 1


@pytest.mark.parametrize(("left_s", "sent_s"), [(0.1, 0.1), (1.001, 1.01), (15.01, 15.1), (100.1, 101.0)])
def test_what_rounding_adds_to_a_deadline_is_no_cancel(left_s: float, sent_s: float) -> None:
    assert sent_s - 0.02 * sent_s - 0.02 < late_from(1000 + sent_s, 1000) - 1000 < left_s
