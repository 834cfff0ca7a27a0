"""`steploom up` with the real services and an engine without a model: from the start to the last process."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from certificates import authority, needs_openssl, signed
from PIL import Image
from plain_house import write_model

from steploom import Client, PermissionDenied, Tls, Unauthenticated
from steploom.exit_codes import ExitCode
from steploom.health import check
from steploom.runtime import RuntimeDir
from steploom_gateway.tokens import TokenConfig, add_token, make_token

UP = (sys.executable, "-m", "steploom", "up", "--engine", "fake", "--metrics-listen", "127.0.0.1:0")


class System:
    """One `steploom up`."""

    def __init__(self, folder: Path, *arguments: str, settings: str = "") -> None:
        self.runtime = RuntimeDir(folder / "run")
        self.log = folder / "log"
        config = folder / "steploom.toml"
        config.write_text(f'[worker.fake]\ndenoise_s = 0.005\nadapters = ["student", "sketch"]\n{settings}')
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*UP, "-c", str(config), "--runtime-dir", str(self.runtime.path), *arguments], stderr=log, stdout=log
            )

    def ready(self) -> str:
        """The gateway's address, once it serves."""
        eventually(lambda: self.runtime.read_services() is not None)
        services = self.runtime.read_services()
        assert services is not None
        eventually(lambda: check(services.gateway) == "SERVING")
        return services.gateway

    def children(self) -> dict[str, int]:
        """Process ids by module."""
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with suppress(OSError):  # it has ended meanwhile
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if words[2:3] == ["-m"]:
                    found[words[3]] = int(pid)
        return found

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # short: a socket's path has at most 107 bytes
        yield Path(name)


@pytest.fixture
def system(folder: Path) -> Iterator[System]:
    running = System(folder, "--listen", "127.0.0.1:0")
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end()


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def picture() -> Any:
    return Image.new("RGB", (64, 48), (200, 150, 120))


def status(runtime: RuntimeDir) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "steploom", "status", "--json", "--runtime-dir", str(runtime.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


def answered_status(runtime: RuntimeDir) -> dict[str, Any]:
    """Once gateway and batcher have both answered within its patience."""
    tables: list[dict[str, Any]] = []

    def has_answers() -> bool:
        code, table = status(runtime)
        tables.append(table)
        return code == ExitCode.OK and table["batcher"]["status"] is not None

    eventually(has_answers)
    return tables[-1]


def status_words(runtime: RuntimeDir) -> str:
    command = [sys.executable, "-m", "steploom", "status", "--runtime-dir", str(runtime.path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def arenas(gateway: int) -> list[Path]:
    """Shared memory that this process has left behind."""
    return list(Path("/dev/shm").glob(f"steploom-arena-{gateway}-*"))


def test_it_serves_shows_its_state_and_ends_without_a_trace(system: System) -> None:
    with Client(system.ready()) as client:
        results = [client.edit(picture(), "close the eyes", tier=tier, timeout=120) for tier in ("free", "pro")]
    assert [(result.width, result.height) for result in results] == [(128, 128)] * 2
    assert [result.adapter for result in results] == ["student", ""]
    table = answered_status(system.runtime)
    assert table["gateway"]["health"] == "SERVING"
    assert int(table["batcher"]["status"]["finished"]) == 2
    assert table["batcher"]["status"]["workers"][0]["slots_used"] == 0
    assert [row["name"] for row in table["batcher"]["status"]["model"]["adapters"]] == ["student", "sketch"]
    eventually(lambda: "student, sketch" in status_words(system.runtime))
    children = system.children()
    assert set(children) == {"steploom_gateway", "steploom_batcher", "steploom_engine_worker"}
    assert system.end() == ExitCode.OK, system.log.read_text()
    assert not any(Path(f"/proc/{pid}").exists() for pid in children.values())
    assert [path.name for path in system.runtime.path.iterdir()] == ["lock"]
    assert not arenas(children["steploom_gateway"])
    assert "Traceback" not in system.log.read_text()


def test_a_second_up_on_the_same_folder_is_refused(system: System) -> None:
    system.ready()
    done = subprocess.run(
        [*UP, "--listen", "127.0.0.1:0", "--runtime-dir", str(system.runtime.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.USAGE
    assert f"held by process {system.process.pid}" in done.stderr
    assert answered_status(system.runtime)["gateway"]["health"] == "SERVING"


def test_a_killed_worker_comes_back_and_no_request_fails(system: System) -> None:
    with Client(system.ready()) as client, ThreadPoolExecutor(8) as pool:
        first = system.children()["steploom_engine_worker"]
        seeds = range(40)
        edits = [
            pool.submit(client.edit, picture(), "x", tier="pro", steps=60, seed=seed, timeout=600) for seed in seeds
        ]
        next(as_completed(edits))  # the others are in the queue and in every stage
        os.kill(first, signal.SIGKILL)
        assert [edit.result(120).seed for edit in edits] == list(seeds)
        eventually(lambda: system.children().get("steploom_engine_worker", first) != first)
    assert system.end() == ExitCode.OK, system.log.read_text()


def test_a_service_comes_back_though_its_folder_was_emptied(system: System) -> None:
    """As cleaners of old files do in /tmp."""
    address = system.ready()
    eventually(lambda: "ready; try" in system.log.read_text())
    for file in (system.runtime.config_file, system.runtime.path / "services.json"):
        file.unlink()
    os.kill(system.children()["steploom_engine_worker"], signal.SIGKILL)
    eventually(lambda: "worker-0 is up again" in system.log.read_text())
    assert system.runtime.read_services() is not None
    with Client(address) as client:
        client.edit(Image.new("RGB", (32, 32)), "smile", timeout=60)
    assert system.end() == ExitCode.OK


@pytest.mark.parametrize("name", ["lock", "steploom.toml"])
def test_a_folder_that_cannot_be_used_is_a_clear_error(folder: Path, name: str) -> None:
    (folder / "run" / name).mkdir(parents=True)
    done = subprocess.run(
        [*UP, "--listen", "127.0.0.1:0", "--runtime-dir", str(folder / "run")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == ExitCode.USAGE
    assert f"{folder}/run/{name} cannot be used: Is a directory" in done.stderr
    assert "Traceback" not in done.stderr


@needs_openssl
def test_a_gateway_with_tls_and_tokens_comes_up_and_answers_its_user_without_certificates(folder: Path) -> None:
    ca = authority(folder)
    server, own = signed(folder, "server", ca), signed(folder, "client", ca)
    token, hashed = make_token("web")
    add_token(folder / "tokens.toml", "web", TokenConfig(hash=hashed, tiers=("free",)))
    settings = f'[gateway]\ntokens = "{folder}/tokens.toml"\n'
    settings += f'[gateway.tls]\ncert = "{server.cert}"\nkey = "{server.key}"\nclient_ca = "{ca.cert}"\n'
    system = System(folder, "--listen", "127.0.0.1:0", settings=settings)
    try:
        eventually(lambda: "ready; try" in system.log.read_text())
        assert answered_status(system.runtime)["gateway"]["health"] == "SERVING"
        services = system.runtime.read_services()
        assert services is not None
        assert check(services.gateway) == "unreachable"
        with Client(services.gateway, tls=Tls(ca.cert, own.cert, own.key), token=token) as client:
            assert client.edit(picture(), "smile", timeout=60).tier == "free"
            with pytest.raises(PermissionDenied):
                client.edit(picture(), "smile", tier="pro", timeout=60)
        with Client(services.local, token=token) as client:
            client.edit(picture(), "smile", timeout=60)
        with Client(services.local) as stranger, pytest.raises(Unauthenticated):
            stranger.edit(picture(), "smile", timeout=60)
    finally:
        assert system.end() == ExitCode.OK, system.log.read_text()
    assert server.secret() not in system.log.read_text()
    assert token.rpartition("_")[2] not in system.log.read_text()


def test_sighup_replaces_workers_while_the_terminal_is_there_and_ends_all_when_it_closes(folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*UP, "--listen", "127.0.0.1:0", "--runtime-dir", str(folder / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = bytearray()

    def says(words: bytes) -> bool:
        while select.select([ours], [], [], 0)[0]:
            said.extend(os.read(ours, 65536))
        return words in said

    try:
        eventually(lambda: says(b"ready; try:"))
        process.send_signal(signal.SIGHUP)
        eventually(lambda: says(b"worker-0: replaced"))
        assert process.poll() is None
        os.close(ours)
        assert process.wait(90) == ExitCode.OK
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert not list(folder.glob("run/*.sock"))


# Takes the terminal that it is started in for its own, and becomes what it is told to run.
OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_plain_models_alone_are_named_and_their_state_is_shown(folder: Path) -> None:
    write_model(folder / "models", "doubled")
    write_model(folder / "models", "broken", code="raise ValueError('no [such] file')")
    system = System(folder, "--listen", "127.0.0.1:0", "--models", str(folder / "models"), "--workers", "0")
    try:
        address = system.ready()
        eventually(lambda: "\nready; " in system.log.read_text())
        (line,) = [line for line in system.log.read_text().splitlines() if line.startswith("ready; ")]
        assert line == (f"ready; Open Inference Protocol at {address}: doubled; not ready: 1, see steploom status")
        broken, doubled = answered_status(system.runtime)["plain_models"]
        assert doubled == {"name": "doubled", "version": "1", "state": "ready", "reason": ""}
        assert (broken["name"], broken["version"], broken["state"]) == ("broken", "", "unavailable")
        assert "no [such] file" in broken["reason"]
        rows = [row.split() for row in status_words(system.runtime).splitlines()]
        assert ["doubled", "1", "ready"] in rows
        assert ["plain", "model", "version", "state", "reason"] in rows
    finally:
        system.end()


def test_no_service_outlives_a_killed_supervisor(system: System) -> None:
    system.ready()
    children = system.children()
    system.process.kill()
    system.process.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children.values()))


def test_a_taken_port_is_a_clear_error_with_nothing_left_running(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        system = System(folder, "--listen", address)
        assert system.process.wait(60) == ExitCode.USAGE
    said = system.log.read_text()
    assert f"cannot listen on {address}" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_the_demo_runs_with_any_engine(folder: Path) -> None:
    picture().save(folder / "in.png")
    command = [sys.executable, "-m", "steploom.demo", "--image", str(folder / "in.png"), "--out", str(folder / "out")]
    done = subprocess.run(
        [*command, "--", "--engine", "fake"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == ExitCode.OK, done.stderr
    assert "금발로 만들어 줘" in done.stdout
    assert len(list((folder / "out").glob("*.png"))) == 13
