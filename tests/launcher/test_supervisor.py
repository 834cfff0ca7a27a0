"""The supervisor over real processes: restarts, the order of the end, and nobody left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from steploom.config import UpConfig
from steploom.exit_codes import ExitCode
from steploom.health import check
from steploom.plan import Plan, ServiceSpec
from steploom.service import NotReplaced, Service, ServiceFailed
from steploom.supervisor import Supervisor
from steploom_common.rpc import Shutdown

STAND_IN = Path(__file__).with_name("stand_in.py")
NAMES = ("gateway", "batcher", "worker-0")
FAST = UpConfig(min_backoff_s=0.05, max_backoff_s=0.2, drain_s=60.0, ready_s=60.0, start_tries=2)


class Stage:
    """A runtime folder with stand-ins for the three services."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[tuple[str, str]] = []
        self.shutdown = Shutdown()
        self.ready = asyncio.Event()

    def command(self, name: str, *extra: str) -> ServiceSpec:
        address = f"unix:{self.folder / name}.sock"
        journal = str(self.folder / "journal")
        return ServiceSpec(name, address, (str(STAND_IN), journal, name, "--listen", address, *extra))

    def supervisor(self, config: UpConfig = FAST, **extra: tuple[str, ...]) -> Supervisor:
        specs = [self.command(name, *extra.get(name.split("-")[0], ())) for name in NAMES]
        plan = Plan(tuple((spec,) for spec in specs), specs[0].address, specs[1].address, (specs[2].address,))
        return Supervisor(plan, config, lambda name, line: self.log.append((name, line)))

    def journal(self, word: str) -> list[str]:
        """Names of the services that did `word`, in order."""
        lines = [line.split() for line in (self.folder / "journal").read_text().splitlines()]
        return [name for name, what, _ in lines if what == word]

    def replaceable(self, config: UpConfig = FAST, *extra: str) -> Supervisor:
        """A service whose processes take turns."""
        spec = replace(
            self.command("worker-0"),
            command=(str(STAND_IN), str(self.folder / "journal"), "worker-0", *extra),
            homes=(f"unix:{self.folder}/worker-0.a.sock", f"unix:{self.folder}/worker-0.b.sock"),
        )
        plan = Plan(((spec,),), "", "", (spec.address,))
        return Supervisor(plan, config, lambda name, line: self.log.append((name, line)))

    async def run(self, supervisor: Supervisor) -> None:
        await supervisor.run(self.shutdown, lambda services: self.ready.set())

    @asynccontextmanager
    async def running(self, supervisor: Supervisor) -> AsyncIterator[asyncio.Task[None]]:
        """Everything up; ended afterwards."""
        task = asyncio.create_task(self.run(supervisor))
        ready = asyncio.create_task(self.ready.wait())
        await asyncio.wait({task, ready}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        try:
            assert self.ready.is_set(), self.log
            yield task
        finally:
            self.shutdown.requested.set()
            await asyncio.wait_for(task, 60)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory() as folder:  # short: a socket's path has at most 107 bytes
        yield Stage(Path(folder))


def service(supervisor: Supervisor, name: str) -> Service:
    return next(item for item in supervisor.services if item.spec.name == name)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  other processes have no event to wait for
            await asyncio.sleep(0.02)


async def test_all_come_up_and_end_front_to_back(stage: Stage) -> None:
    supervisor = stage.supervisor()
    async with stage.running(supervisor):
        pids = [item.pid for item in supervisor.services]
        assert sorted(stage.journal("started")) == sorted(NAMES)
        await eventually(lambda: ("batcher", "hello from batcher") in stage.log)
    assert stage.journal("asked") == stage.journal("ended") == list(NAMES)
    assert not any(is_alive(pid) for pid in pids if pid)


async def test_a_killed_service_comes_back_and_the_others_stay(stage: Stage) -> None:
    supervisor = stage.supervisor()
    async with stage.running(supervisor):
        worker = service(supervisor, "worker-0")
        first = worker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: worker.life.restarts == 1 and worker.life.state.value == "up")
        assert worker.pid != first
        assert sorted(stage.journal("started")) == sorted([*NAMES, "worker-0"])


async def test_a_successor_is_ready_before_the_old_process_is_asked_to_end(stage: Stage) -> None:
    supervisor = stage.replaceable()
    (worker,) = supervisor.services
    async with stage.running(supervisor):
        for turn in "bab":
            before = worker.pid
            await supervisor.replace()
            assert worker.pid != before
            assert (stage.folder / "worker-0.sock").readlink() == Path(f"worker-0.{turn}.sock")
            assert await asyncio.to_thread(check, worker.spec.address) == "SERVING"
        await eventually(lambda: stage.journal("ended") == ["worker-0"] * 3)
        lines = (stage.folder / "journal").read_text().splitlines()
        order = [line.split()[1] for line in lines]
        assert order == ["started", *["started", "asked", "ended"] * 3]
        assert worker.life.restarts == 0
    assert not list(stage.folder.glob("worker-0.?.sock"))


async def test_one_that_has_crashed_is_new_anyway(stage: Stage) -> None:
    supervisor = stage.replaceable(UpConfig(min_backoff_s=2.0, max_backoff_s=2.0))
    (worker,) = supervisor.services
    async with stage.running(supervisor):
        first = worker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: worker.pid is None)
        await supervisor.replace()
        assert worker.pid not in (None, first)
        assert stage.journal("started") == ["worker-0"] * 2


@pytest.mark.parametrize(("code", "is_replaced"), [(3, True), (1, False), (2, False)])
async def test_the_old_process_goes_first_where_there_is_no_memory_for_both_and_for_no_other_reason(
    stage: Stage, code: int, is_replaced: bool
) -> None:
    supervisor = stage.replaceable(FAST, "--alone", str(code))
    (worker,) = supervisor.services
    async with stage.running(supervisor):
        before = worker.pid
        if is_replaced:
            await supervisor.replace()
        else:
            with pytest.raises(
                NotReplaced, match=f"worker-0 is not replaced: its successor ended with exit code {code}"
            ):
                await supervisor.replace()
        assert (worker.pid != before) is is_replaced
        assert worker.life.state.value == "up"


async def test_a_successor_that_is_never_ready_leaves_the_old_one(stage: Stage) -> None:
    supervisor = stage.replaceable(replace(FAST, ready_s=3.0), "--unready-beside")
    (worker,) = supervisor.services
    async with stage.running(supervisor):
        before = worker.pid
        with pytest.raises(NotReplaced, match="its successor is not ready within 3 s"):
            await supervisor.replace()
        assert worker.pid == before
        assert worker.life.state.value == "up"


async def test_an_end_while_a_successor_starts_ends_both(stage: Stage) -> None:
    supervisor = stage.replaceable(FAST, "--unready-beside")
    async with stage.running(supervisor):
        replacing = asyncio.create_task(supervisor.replace())
        await eventually(lambda: stage.journal("started") == ["worker-0"] * 2)
        pids = [int(line.split()[2]) for line in (stage.folder / "journal").read_text().splitlines()]
        stage.shutdown.signal()
        await eventually(lambda: not any(is_alive(pid) for pid in pids))
        replacing.cancel()
        await asyncio.gather(replacing, return_exceptions=True)


async def test_what_takes_no_turns_is_not_replaced(stage: Stage) -> None:
    with pytest.raises(NotReplaced, match="batcher cannot be replaced; there is: nothing"):
        await stage.supervisor().replace(["batcher"])
    with pytest.raises(NotReplaced, match="all workers run elsewhere"):
        await stage.supervisor().replace()


async def test_a_configuration_error_ends_everything_with_its_message(stage: Stage) -> None:
    supervisor = stage.supervisor(batcher=("--exit", "2"))
    with pytest.raises(ServiceFailed, match=r"batcher cannot start: .*slots: is 0, must be at least 1") as failure:
        await asyncio.wait_for(stage.run(supervisor), 60)
    assert failure.value.code is ExitCode.USAGE
    assert all(item.pid is None for item in supervisor.services)


async def test_a_service_that_only_crashes_is_given_up(stage: Stage) -> None:
    with pytest.raises(ServiceFailed, match="worker-0 cannot start: it failed 2 times") as failure:
        await asyncio.wait_for(stage.run(stage.supervisor(worker=("--exit", "1"))), 60)
    assert failure.value.code is ExitCode.FAILED


async def test_a_service_that_is_never_ready_is_named(stage: Stage) -> None:
    config = UpConfig(ready_s=1.5)
    with pytest.raises(ServiceFailed, match=r"not ready within 1.5 s: .*worker-0") as failure:
        await asyncio.wait_for(stage.run(stage.supervisor(config, worker=("--unready",))), 60)
    assert failure.value.code is ExitCode.UNAVAILABLE


@pytest.mark.parametrize("name", NAMES)
async def test_a_service_that_hangs_is_killed_and_started_again(
    stage: Stage, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level("INFO")
    config = UpConfig(min_backoff_s=0.05, max_backoff_s=0.2, hang_s=3.0)
    supervisor = stage.supervisor(config)
    async with stage.running(supervisor):
        hung = service(supervisor, name)
        first = hung.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        await eventually(lambda: hung.life.restarts == 1 and hung.life.state.value == "up")
        assert hung.pid != first
        assert not is_alive(first)
        assert all(item.life.restarts == 0 for item in supervisor.services if item is not hung)
    assert f"{name} has said nothing for" in caplog.text


async def test_a_deaf_service_is_killed_after_the_grace(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(service: Service) -> None:
        monkeypatch.setattr("steploom.supervisor._LAST_GRACE_S", 60.0)  # the others, who hear, have time to end
        killed.append(service.spec.name)
        end(service)

    end, killed = Service.kill, list[str]()
    monkeypatch.setattr(Service, "kill", kill)
    supervisor = stage.supervisor(UpConfig(drain_s=0.0), gateway=("--deaf",))
    async with stage.running(supervisor):
        pid = service(supervisor, "gateway").pid
    assert pid is not None
    assert not is_alive(pid)
    assert killed == ["gateway"]
    assert stage.journal("ended") == ["batcher", "worker-0"]


async def test_a_second_signal_kills(stage: Stage) -> None:
    supervisor = stage.supervisor(UpConfig(drain_s=600.0), gateway=("--deaf",))
    async with stage.running(supervisor) as task:
        stage.shutdown.signal()
        await eventually(lambda: stage.journal("asked") == ["gateway"])
        stage.shutdown.signal()
        await asyncio.wait_for(asyncio.shield(task), 60)  # a tenth of the grace


async def test_stopping_before_all_are_ready(stage: Stage) -> None:
    supervisor = stage.supervisor(batcher=("--unready",))
    task = asyncio.create_task(stage.run(supervisor))
    await eventually(lambda: (stage.folder / "journal").exists())
    stage.shutdown.signal()
    await asyncio.wait_for(task, 60)
    assert not stage.ready.is_set()


ORPHAN_MAKER = """
import asyncio, sys
from steploom.process import Process

async def main():
    process = await Process.start(sys.argv[1:], lambda line: None)
    print(process.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_no_child_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    sleeper = ("-c", "import time; time.sleep(3600)")
    with subprocess.Popen([sys.executable, "-c", ORPHAN_MAKER, *sleeper], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        deadline = time.monotonic() + 60
        while b"leash" in Path(f"/proc/{child}/cmdline").read_bytes() and time.monotonic() < deadline:
            time.sleep(0.02)  # until the leash has become the service
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 60
        while is_alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(child)
