"""Adapters that are loaded, loaded anew and unloaded while jobs run, in virtual time: none of them fails for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from steploom_batcher import virtual_time
from steploom_batcher.adapter_offers import AdapterState
from steploom_batcher.fake_worker import FakeHost, fake_model
from steploom_batcher.feed import JobFeed
from steploom_batcher.messages import AdapterVersion, DropAdapter, LoadAdapter
from steploom_batcher.types import JobSpec, Refused
from steploom_common.adapter import AdapterTraits
from steploom_common.errors import FailedPrecondition, NotFound, NotInPlace, SteploomError, Unavailable

from .driver_rig import KEY, Rig, check_order, payload, result_of, rig

TRAITS = AdapterTraits()
MODEL = fake_model().name


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def version(digest: str, name: str = "late") -> AdapterVersion:
    return AdapterVersion(name, digest, TRAITS)


def put(here: Rig, *found: AdapterVersion | str, seconds: float = 0.5) -> None:
    """What the folder of each worker holds from now on."""
    for host, item in zip(here.hosts, found or ("",), strict=True):
        host.folder["late"] = (item, seconds)


def submit(here: Rig, job_id: str, adapter: str, steps: int = 3) -> JobFeed:
    """As the service does it.

    Raises:
        LookupError: the adapter is not offered.
    """
    model = here.driver.models[MODEL]
    if adapter and adapter not in model.adapters:
        raise LookupError(adapter)
    digest = here.driver.adapters.digest(MODEL, adapter)
    given = replace(payload(steps), adapter=adapter, adapter_digest=digest)
    answer = here.driver.submit(JobSpec(job_id, KEY, "free", steps, 3, here.loop.time() + 60.0), given)
    assert not isinstance(answer, Refused)
    return answer[1]


def digest_of(picture: bytes) -> str:
    """Of the adapter that drew it; see `FakeWorker`."""
    return picture.split(b"smile:")[1][:1].decode()


async def drawn(feed: JobFeed) -> str:
    done = await result_of(feed)
    assert isinstance(done.picture.place, bytes)
    return digest_of(done.picture.place)


def play(scenario: Coroutine[Any, Any, None]) -> None:
    virtual_time.run(scenario)


async def stream(here: Rig, adapter: str, until: asyncio.Event) -> list[str]:
    """A job every 50 ms; the digests that drew them, in order of submission. A job that fails fails the test."""
    feeds: list[asyncio.Task[str]] = []
    while not until.is_set():
        feeds.append(asyncio.create_task(drawn(submit(here, f"{adapter}-{len(feeds)}", adapter))))
        await asyncio.sleep(0.05)
    return list(await asyncio.gather(*feeds))


def test_a_stream_of_jobs_sees_a_load_a_reload_and_an_unload() -> None:
    async def scenario() -> None:
        async with rig(num_workers=2) as here:
            load, unload = here.driver.adapters.load, here.driver.adapters.unload
            over, gone = asyncio.Event(), asyncio.Event()
            plain = asyncio.create_task(stream(here, "student", over))
            with pytest.raises(LookupError):
                submit(here, "early", "late")
            put(here, version("1"), version("1"))
            await load(MODEL, "late")
            late = asyncio.create_task(stream(here, "late", gone))
            await asyncio.sleep(1.0)
            put(here, version("2"), version("2"))
            await load(MODEL, "late")
            await asyncio.sleep(1.0)
            gone.set()
            await asyncio.sleep(0.06)
            last = submit(here, "last", "late", steps=60)
            await unload(MODEL, "late")
            with pytest.raises(LookupError):
                submit(here, "too-late", "late")
            assert here.driver.adapters.statuses(MODEL)[1].state is AdapterState.UNLOADING
            assert await drawn(last) == "2"
            digests = await late
            assert digests == sorted(digests)
            assert set(digests) == {"1", "2"}
            await asyncio.sleep(0.5)
            assert here.driver.adapters.statuses(MODEL)[1].reason == "unloaded"
            over.set()
            assert len(await plain) > 40
            for host in here.hosts:
                assert host.worker
                assert [item.name for item in host.worker.versions] == ["student"]
                check_order(host.worker.history)
                drops = [item for item in host.worker.history if isinstance(item, DropAdapter)]
                assert [item.digest for item in drops] == ["1", "2"]
                assert not host.worker.misfits
            await asyncio.sleep(0.1)
            await here.assert_nothing_left()

    play(scenario())


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        ((version("2"), "adapter.safetensors: is missing"), FailedPrecondition, "w1: adapter.safetensors: is missing"),
        ((version("2"), version("3")), FailedPrecondition, "folders hold different files of it: w0: 2, w1: 3"),
        (("broken", "broken"), FailedPrecondition, "broken"),
    ],
)
def test_a_load_that_fails_on_one_worker_is_undone_on_the_others(
    found: tuple[AdapterVersion | str, ...], error: type[SteploomError], words: str
) -> None:
    async def scenario() -> None:
        async with rig(num_workers=2) as here:
            put(here, version("1"), version("1"))
            await here.driver.adapters.load(MODEL, "late")
            over = asyncio.Event()
            jobs = asyncio.create_task(stream(here, "late", over))
            await asyncio.sleep(0.1)
            put(here, *found)
            with pytest.raises(error, match=words):
                await here.driver.adapters.load(MODEL, "late")
            await asyncio.sleep(0.5)
            over.set()
            assert set(await jobs) == {"1"}
            assert [host.worker.versions[1:] for host in here.hosts if host.worker] == [(version("1"),)] * 2
            (_, status) = here.driver.adapters.statuses(MODEL)
            assert status.state is AdapterState.READY
            assert status.reason.startswith("the latest load failed: ")
            put(here, version("4"), version("4"))
            await here.driver.adapters.load(MODEL, "late")
            assert await drawn(submit(here, "after", "late")) == "4"

    play(scenario())


def test_changes_of_one_adapter_go_one_after_the_other_and_hold_up_no_other() -> None:
    async def scenario() -> None:
        async with rig() as here:
            adapters = here.driver.adapters
            put(here, version("1"), seconds=5.0)
            slow = asyncio.create_task(adapters.load(MODEL, "late"))
            await asyncio.sleep(0.1)
            assert adapters.statuses(MODEL)[1].state is AdapterState.LOADING
            behind = asyncio.create_task(adapters.unload(MODEL, "late"))
            await adapters.unload(MODEL, "student")
            assert not slow.done()
            await asyncio.gather(slow, behind)
            assert here.loop.time() > 5.0
            with pytest.raises(LookupError):
                submit(here, "a", "late")
            assert not adapters._locks

    play(scenario())


def test_names_that_are_nowhere() -> None:
    async def scenario() -> None:
        async with rig() as here:
            with pytest.raises(NotInPlace, match="there is none"):
                await here.driver.adapters.load(MODEL, "odd")
            with pytest.raises(NotFound, match="adapter 'odd' does not exist; there is: student"):
                await here.driver.adapters.unload(MODEL, "odd")
            assert [item.name for item in here.driver.adapters.statuses(MODEL)] == ["student"]
            await here.driver.adapters.unload(MODEL, "student")
            await asyncio.sleep(0.1)
            await here.driver.adapters.unload(MODEL, "student")  # a second time changes nothing
            here.hosts[0].folder["student"] = (version("9", "student"), 0.0)
            await here.driver.adapters.load(MODEL, "student")
            assert await drawn(submit(here, "a", "student")) == "9"

    play(scenario())


def test_a_worker_that_comes_meanwhile_is_asked_too() -> None:
    async def scenario() -> None:
        async with rig(num_workers=2) as here:
            here.hosts[1].is_listening = False
            here.hosts[1].kill()
            await asyncio.sleep(0.1)
            put(here, version("1"), version("1"), seconds=5.0)
            load = asyncio.create_task(here.driver.adapters.load(MODEL, "late"))
            await asyncio.sleep(1.0)
            here.hosts[1].is_listening = True
            await load
            for host in here.hosts:
                assert host.worker
                assert version("1") in host.worker.versions

    play(scenario())


def test_a_load_whose_workers_are_all_lost() -> None:
    async def scenario() -> None:
        async with rig() as here:
            put(here, version("1"), seconds=5.0)
            load = asyncio.create_task(here.driver.adapters.load(MODEL, "late"))
            await asyncio.sleep(1.0)
            here.hosts[0].is_listening = False
            here.hosts[0].kill()
            with pytest.raises(Unavailable, match="no worker is up"):
                await load

    play(scenario())


async def crash(host: FakeHost) -> None:
    host.kill()
    await asyncio.sleep(1.0)


def test_a_worker_that_is_lost_comes_back_with_what_was_loaded_before_its_first_job() -> None:
    async def scenario() -> None:
        async with rig() as here:
            put(here, version("1"))
            await here.driver.adapters.load(MODEL, "late")
            over = asyncio.Event()
            jobs = asyncio.create_task(stream(here, "late", over))
            for _ in range(3):
                await asyncio.sleep(0.2)
                await crash(here.hosts[0])
                assert "late" in here.driver.models[MODEL].adapters
            over.set()
            assert set(await jobs) == {"1"}
            loads = [item for item in here.worker.history if isinstance(item, LoadAdapter)]
            assert [(item.name, item.at_once) for item in loads] == [("late", True)]
            assert here.worker.history[0] == loads[0]

    play(scenario())


def test_files_that_have_changed_are_what_a_lost_worker_comes_back_with() -> None:
    async def scenario() -> None:
        async with rig() as here:
            put(here, version("1"))
            await here.driver.adapters.load(MODEL, "late")
            feeds = [submit(here, f"a{number}", "late", steps=90) for number in range(10)]  # two of them wait
            await asyncio.sleep(0.05)
            put(here, version("2"))
            await crash(here.hosts[0])
            put(here, version("3"))
            await here.driver.adapters.load(MODEL, "late")
            digests = [await drawn(feed) for feed in feeds]
            assert set(digests[:8]) == {"2"}  # what they came for is nowhere any more
            assert set(digests[8:]) <= {"2", "3"}
            # those were sent before it was known what the worker would read; the others for what it has
            assert sorted(here.worker.misfits) == [f"a{number}" for number in range(8)]
            assert await drawn(submit(here, "c", "late")) == "3"

    play(scenario())


def test_jobs_whose_adapter_is_lost_for_good_are_told_so() -> None:
    async def scenario() -> None:
        async with rig() as here:
            put(here, version("1"))
            await here.driver.adapters.load(MODEL, "late")
            feeds = [submit(here, f"j{number}", "late", steps=30) for number in range(12)]
            others = [submit(here, f"o{number}", "student", steps=3) for number in range(3)]
            await asyncio.sleep(0.05)
            put(here, "the file is gone")
            here.hosts[0].kill()
            for feed in feeds:
                with pytest.raises(Unavailable, match="adapter 'late' is lost with its worker: the file is gone"):
                    await result_of(feed)
            await asyncio.gather(*map(result_of, others))
            with pytest.raises(LookupError):
                submit(here, "after", "late")
            assert here.driver.adapters.statuses(MODEL)[1].reason == "the file is gone"
            await here.assert_nothing_left()

    play(scenario())


def test_jobs_of_an_unloaded_adapter_end_though_their_worker_is_lost() -> None:
    async def scenario() -> None:
        async with rig() as here:
            put(here, version("1"))
            await here.driver.adapters.load(MODEL, "late")
            feed = submit(here, "a", "late", steps=30)
            await asyncio.sleep(0.05)
            await here.driver.adapters.unload(MODEL, "late")
            await crash(here.hosts[0])
            assert await drawn(feed) == "1"
            await asyncio.sleep(0.1)
            assert here.worker.versions == fake_model().held

    play(scenario())


def test_a_successor_takes_over_what_was_loaded() -> None:
    async def scenario() -> None:
        async with rig() as here:
            put(here, version("1"))
            await here.driver.adapters.load(MODEL, "late")
            over = asyncio.Event()
            jobs = asyncio.create_task(stream(here, "late", over))
            await asyncio.sleep(0.2)
            here.hosts[0].leave()
            await asyncio.sleep(2.0)
            over.set()
            assert set(await jobs) == {"1"}

    play(scenario())
