"""A whole system of its own for a test or a measurement: `steploom up` in a child process, with free ports."""

from __future__ import annotations

import json
import os
import re
import signal
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steploom_common.rpc import INTERNAL_OPTIONS
from steploom_loadtest.child import Child
from steploom_protos.batcher.v1 import batcher_pb2 as batcher_pb
from steploom_protos.batcher.v1.batcher_pb2_grpc import BatcherStub

Tables = Mapping[str, Any]  # steploom.toml as nested tables

_ANSWER_S = 30.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Stack:
    """Runs until `stop`; best as a context manager.

    Args:
        directory: for sockets, configuration and log; its path must be short enough for a socket.
        tables: settings that differ from the defaults.
        ready_s: seconds until requests must be taken, warm-up included.
    """

    def __init__(self, directory: Path, tables: Tables, ready_s: float = 60.0) -> None:
        self.directory = directory
        self._runtime = directory / "run"
        self._ready_s = ready_s
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "steploom.toml"
        config.write_text(to_toml({**tables, "gateway": _FREE_PORTS | {**tables.get("gateway", {})}}))
        up = ("-m", "steploom", "up", "--config", str(config), "--runtime-dir", str(self._runtime))
        self._child = Child("`steploom up`", up, directory / "up.log")

    def __repr__(self) -> str:
        return f"Stack({self.directory}, pid={self._child.pid})"

    def __enter__(self) -> Self:
        try:
            self.wait_serving(self._ready_s)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.kill()

    @property
    def gateway(self) -> str:
        """host:port of the public service."""
        return str(self._services()["gateway"])

    @property
    def batcher(self) -> str:
        """Address of the batcher's socket."""
        return str(self._services()["batcher"])

    @property
    def runtime(self) -> Path:
        """The runtime folder."""
        return self._runtime

    @property
    def metrics_url(self) -> str:
        """Of the page of metrics."""
        settings = tomllib.loads((self._runtime / "steploom.toml").read_text())
        return f"http://{settings['gateway']['metrics_listen']}/metrics"

    @property
    def log(self) -> str:
        """What the services have said so far."""
        return self._child.log

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self._child.pid

    def pids(self) -> dict[str, int]:
        """Process of each service that runs now: gateway, batcher, worker-0 and so on."""
        found = {}
        for pid in _children(self._child.pid):
            name = _service_name(pid)
            if name is not None:
                found[name] = pid
        return found

    def kill_service(self, name: str) -> int:
        """SIGKILL to one service; returns the process that died of it."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """One service stands still within the block; what it is sent waits for it."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def status(self) -> batcher_pb.StatusResponse:
        """What the batcher says of itself."""
        with grpc.insecure_channel(self.batcher, options=INTERNAL_OPTIONS) as channel:
            return BatcherStub(channel).Status(batcher_pb.StatusRequest(), timeout=_ANSWER_S, wait_for_ready=True)

    def metrics_page(self) -> str:
        """What Prometheus would read."""
        with urllib.request.urlopen(self.metrics_url, timeout=_ANSWER_S) as page:
            return str(page.read().decode())

    def metric(self, name: str) -> float:
        """A gauge or counter of the gateway, summed over its labels; 0 where it has none yet."""
        lines = self.metrics_page().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))

    def wait_serving(self, seconds: float) -> None:
        """Returns when the gateway takes requests.

        Raises:
            StackError: it does not within `seconds`, or the system has ended.
        """

        def is_serving() -> bool:
            self._child.check_alive()
            return (self._runtime / "services.json").exists() and is_healthy(self.gateway)

        self._child.wait(is_serving, seconds, "is not serving")

    def wait_until(self, holds: Callable[[batcher_pb.StatusResponse], bool], seconds: float) -> None:
        """Returns when the batcher's status is as wanted.

        Raises:
            StackError: it is not within `seconds`.
        """
        self._child.wait(lambda: holds(self.status()), seconds, "is not in the wanted state")

    def wait_metric(self, name: str, value: float, seconds: float) -> None:
        """Returns when a metric of the gateway has this value.

        Raises:
            StackError: it has not within `seconds`.
        """
        self._child.wait(lambda: self.metric(name) == value, seconds, f"has {name} other than {value:g}")

    def wait_log(self, words: str, seconds: float) -> None:
        """Returns when a service has said this; what it says arrives some time after it has done it.

        Raises:
            StackError: none has within `seconds`.
        """
        self._child.wait(lambda: words in self.log, seconds, f"has not said {words!r}")

    def terminate(self) -> None:
        """SIGTERM: drain and end."""
        self._child.terminate()

    def wait_end(self, seconds: float) -> int:
        """The exit code.

        Raises:
            StackError: it still runs after `seconds`.
        """
        return self._child.wait_end(seconds)

    def stop(self, seconds: float = 120.0) -> int:
        """Ends everything in order; returns the exit code."""
        return self._child.stop(seconds)

    def kill(self) -> None:
        """Ends everything without asking. The services die with their supervisor."""
        self._child.kill()

    def _services(self) -> dict[str, Any]:
        table: dict[str, Any] = json.loads((self._runtime / "services.json").read_text())
        return table


def arenas_of(pid: int) -> list[Path]:
    """Shared memory that a gateway's process has made and that is still there."""
    return list(Path("/dev/shm").glob(f"steploom-arena-{pid}-*"))


_FREE_PORTS = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}


def is_healthy(address: str) -> bool:
    """The service at `address` says SERVING."""
    with grpc.insecure_channel(address, options=INTERNAL_OPTIONS) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process since it began, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S  # utime, stime; proc(5)


def to_toml(tables: Tables) -> str:
    """Nested tables as TOML."""
    return "\n".join(_toml_lines(tables, "")) + "\n"


def _toml_lines(table: Tables, path: str) -> Iterator[str]:
    if path:
        yield f"[{path}]"
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml_lines(value, f"{path}.{key}" if path else key)


@contextmanager
def running(directory: Path, tables: Tables, ready_s: float = 60.0) -> Iterator[Stack]:
    """A stack for the length of a `with` block."""
    with Stack(directory, tables, ready_s) as stack:
        yield stack


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _service_name(pid: int) -> str | None:
    """From its command line: `-m steploom_gateway …`, or the socket of a worker."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    module = next((item for item in arguments if item.startswith("steploom_")), "")
    if module == "steploom_engine_worker":
        return Path(arguments[arguments.index("--listen") + 1]).name.partition(".")[0]  # worker-0.a.sock
    return module.removeprefix("steploom_") or None
