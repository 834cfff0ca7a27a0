"""Links to workers in virtual time: back-off, loss, return."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace

import pytest

from steploom_batcher import virtual_time
from steploom_batcher.fake_worker import fake_model, fake_ready
from steploom_batcher.messages import AdapterChanged, AdapterVersion, Admit, Free, Prepared, Ready, TickReport
from steploom_batcher.types import Stage
from steploom_batcher.worker_link import Backoff, WorkerLink
from steploom_batcher.worker_wire import (
    ProtocolError,
    commands_to_wire,
    model_from_wire,
    model_to_wire,
    ready_from_wire,
    report_from_wire,
)
from steploom_common.adapter import AdapterTraits
from steploom_common.errors import Unavailable
from steploom_protos.batcher.v1 import batcher_pb2
from steploom_protos.worker.v1 import worker_pb2

from .driver_rig import COSTS, config, payload, result_of, rig


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def test_pauses_double_up_to_the_bound_and_start_again_after_a_success() -> None:
    backoff = Backoff(0.1, 2.0, random.Random(1))
    pauses = [backoff.next_s() for _ in range(2000)]
    for pause, longest in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0), strict=False):
        assert longest / 2 <= pause <= longest
    assert max(pauses[10:]) <= 2.0
    assert len({round(pause, 6) for pause in pauses[10:60]}) > 40  # jitter
    backoff.reset()
    assert backoff.next_s() <= 0.1


def test_a_worker_is_dialled_for_ever() -> None:
    async def scenario() -> None:
        async with rig() as here:
            host = here.hosts[0]
            host.is_listening = False
            host.kill()
            await asyncio.sleep(3600)
            tries = host.dialled_at
            assert 1800 < len(tries) < 3700  # between one and two seconds apart
            assert here.links[0].last_error == "UNAVAILABLE: nobody listens at w0"
            assert not here.driver.can_serve
            host.is_listening = True
            await asyncio.sleep(2.1)
            assert here.driver.can_serve
            assert here.links[0].last_error == ""
            await result_of(here.submit("a"))

    virtual_time.run(scenario())


def test_a_job_waits_for_a_worker_that_comes_back_within_the_grace() -> None:
    async def scenario() -> None:
        async with rig(config(worker_grace_s=30.0)) as here:
            host = here.hosts[0]
            feed = here.submit("a", 20)
            await asyncio.sleep(0.03)
            host.is_listening = False
            host.kill()
            await asyncio.sleep(5)
            late = here.submit("b")
            host.is_listening = True
            await asyncio.gather(result_of(feed), result_of(late))
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_a_worker_that_comes_back_with_another_model_serves_it_alone() -> None:
    async def scenario() -> None:
        async with rig() as here:
            host = here.hosts[0]
            lost = [here.submit(f"j{number}", 20, deadline_s=1e6) for number in range(12)]
            await asyncio.sleep(0.03)
            host.ready = fake_ready(COSTS, 8, fake_model("another", 8, 8))
            host.kill()
            for feed in lost:
                with pytest.raises(Unavailable, match="another model"):
                    await result_of(feed)
            assert [model.name for model in here.driver.models.values()] == ["another"]
            await here.assert_nothing_left()

    virtual_time.run(scenario())


def test_the_models_of_workers_that_are_up_come_first() -> None:
    async def scenario() -> None:
        async with rig(num_workers=2) as here:
            for host, name in zip(here.hosts, ("first", "second"), strict=True):
                host.ready = fake_ready(COSTS, 8, fake_model(name))
                host.kill()
                await asyncio.sleep(1)
            assert list(here.driver.models) == ["first", "second"]
            here.hosts[0].is_listening = False
            here.hosts[0].kill()
            await asyncio.sleep(1)
            assert list(here.driver.models) == ["second", "first"]

    virtual_time.run(scenario())


def test_a_second_batcher_is_kept_waiting_until_the_first_is_gone() -> None:
    async def scenario() -> None:
        async with rig() as here:
            host = here.hosts[0]
            heard = _Heard()
            second = WorkerLink("again", heard, Backoff(0.1, 0.1, random.Random(0)), host.dial)
            second.start()
            await asyncio.sleep(1)
            assert second.last_error.startswith("ALREADY_EXISTS")
            assert here.links[0].is_up
            await here.links[0].close()
            await asyncio.sleep(0.2)
            assert second.is_up
            assert heard.ups == ["again"]
            await second.close()
            assert heard.downs == ["again"]

    virtual_time.run(scenario())


def test_a_listener_that_raises_costs_the_session_and_not_the_link() -> None:
    async def scenario() -> None:
        async with rig() as here:
            here.hosts[0].worker._report(TickReport(1, None))  # type: ignore[union-attr,arg-type]
            await asyncio.sleep(1)
            assert len(here.hosts[0].dialled_at) == 2
            await result_of(here.submit("a"))

    virtual_time.run(scenario())


def test_a_worker_that_hangs_is_lost_after_a_while() -> None:
    async def scenario() -> None:
        async with rig(config(tick_timeout_s=60.0)) as here:
            await asyncio.sleep(100)  # owing nothing is no reason
            feed = here.submit("a", 10, deadline_s=600)
            await asyncio.sleep(0.02)
            here.worker.hang()
            await result_of(feed)
            assert 160 < here.loop.time() < 176
            assert len(here.hosts[0].dialled_at) == 2

    virtual_time.run(scenario())


def test_a_worker_that_cannot_be_used_is_not_up() -> None:
    async def scenario() -> None:
        async with rig() as here:
            host = here.hosts[0]
            host.ready = Ready("w", "fake", "none", 8, host.ready.model, {**COSTS, Stage.DENOISE: {1: 0.1}})
            host.kill()
            await asyncio.sleep(1)
            assert not here.driver.can_serve
            assert "no bucket" in here.links[0].last_error

    virtual_time.run(scenario())


def test_words_that_are_no_part_of_the_protocol_are_refused() -> None:
    tick_done = worker_pb2.Report(tick_done=worker_pb2.TickDone(tick_id=1, status=worker_pb2.TICK_STATUS_UNSPECIFIED))
    with pytest.raises(ProtocolError, match="expected ready, got tick_done"):
        ready_from_wire(tick_done)
    with pytest.raises(ProtocolError, match="0 is not a valid Status"):
        report_from_wire(tick_done)
    with pytest.raises(ProtocolError, match="empty report"):
        report_from_wire(worker_pb2.Report())
    with pytest.raises(ProtocolError, match="no bucket for encode, denoise, decode"):
        ready_from_wire(worker_pb2.Report(ready=worker_pb2.Ready(worker_id="w")))
    failed = worker_pb2.TickDone(tick_id=1, status=worker_pb2.TICK_STATUS_FAILED, failures=[worker_pb2.SlotFailure()])
    with pytest.raises(ProtocolError, match="tick 1 is FAILED as a whole"):
        report_from_wire(worker_pb2.Report(tick_done=failed))


def test_a_models_adapters_keep_their_order_and_bounds_on_the_wire() -> None:
    adapters = {
        "sketch": AdapterTraits(max_steps=50),
        "fast": AdapterTraits(4, True, 1.5, 10.0, 1.25, 2.0),
    }
    versions = tuple(AdapterVersion(name, f"digest of {name}", traits) for name, traits in adapters.items())
    model = replace(fake_model(), adapters=adapters, versions=versions)
    back = model_from_wire(worker_pb2.ModelInfo.FromString(model_to_wire(model).SerializeToString()))
    assert back == model
    assert list(back.adapters) == ["sketch", "fast"]


def test_a_request_at_a_bound_of_an_adapter_is_within_it() -> None:
    """Though neither number is what it was before it became a float on the wire."""
    model = model_from_wire(
        model_to_wire(replace(fake_model(), adapters={"fast": AdapterTraits(max_guidance_scale=7.3)}))
    )
    asked = batcher_pb2.SubmitRequest(guidance_scale=7.3).guidance_scale
    assert asked > 7.3
    assert model.adapters["fast"].violations("fast", 4, asked, 1.5) == []


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (worker_pb2.Adapter(name="none"), "reserved name 'none'"),
        (worker_pb2.Adapter(name="auto"), "reserved name 'auto'"),
        (worker_pb2.Adapter(name="fast"), "adapter 'fast', whose max_steps: is 0, must be at least 1"),
    ],
)
def test_an_adapter_that_cannot_be_asked_for_is_not_taken(adapter: worker_pb2.Adapter, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        model_from_wire(worker_pb2.ModelInfo(adapters=[adapter]))


class _Heard:
    """A listener that takes notes."""

    def __init__(self) -> None:
        self.ups: list[str] = []
        self.downs: list[str] = []

    def worker_up(self, name: str, ready: object, link: object, home: str = "") -> None:
        self.ups.append(name)

    def worker_down(self, name: str, error: str) -> None:
        self.downs.append(name)

    def worker_leaving(self, name: str) -> None:
        raise NotImplementedError

    def report(self, name: str, report: TickReport) -> None:
        raise NotImplementedError

    def prepared(self, name: str, prepared: Prepared) -> None:
        raise NotImplementedError

    def adapter_changed(self, name: str, changed: AdapterChanged) -> None:
        raise NotImplementedError


def test_more_commands_than_a_message_holds_keep_their_order() -> None:
    async def scenario() -> None:
        async with rig() as here:
            host, link = here.hosts[0], here.driver._roster.workers["w0"].link
            sent = [Admit(f"j{slot}", 100 + slot, payload(3)) for slot in range(50)]
            link.send([*sent])
            await asyncio.sleep(0.001)
            assert host.worker is not None
            assert host.worker.history == sent

    virtual_time.run(scenario())


def test_commands_of_one_message_are_in_order() -> None:
    message = commands_to_wire([Free(3), Admit("a", 3, payload(3)), Free(4)])
    assert [part.WhichOneof("command") for part in (message, *message.more)] == ["release", "admit", "release"]
    assert message.release.slot == 3
