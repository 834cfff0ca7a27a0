"""One server with one setting: started, waited for, asked what it has used, and ended with all of its processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from steploom_benchmarks import process_tree
from steploom_benchmarks.callers import Caller, CallError, HttpCaller, OipCaller
from steploom_benchmarks.environments import python_of
from steploom_benchmarks.loads import Load
from steploom_benchmarks.peers import Peer, Setting

_SERVERS = Path(__file__).resolve().parents[1] / "servers"
_COUNTS = struct.Struct("<QQ")  # batches, items; as in servers/bench_model.py
_READY_S = 240.0
_FIRST_ANSWER_S = 60.0  # long: a request that is given up may go on in the server
_POLL_S = 0.1
_END_S = 10.0
_LAST_LINES = 15


def end_in_order() -> None:
    """SIGTERM ends this program as an exception does: the servers that it has started end too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class ServerError(Exception):
    """A server did not come up; the message has the end of its log."""


class ServerProcess:
    """Runs within a `with` block.

    Args:
        peer: what is started.
        load: whose model it serves.
        setting: how it batches.
        directory: an empty one, for whatever it writes.
    """

    def __init__(self, peer: Peer, load: Load, setting: Setting, directory: Path) -> None:
        self._peer = peer
        self._log = directory / "server.log"
        self._counts = directory / "counts"
        self._counts.mkdir(parents=True)
        self.port, *more = _free_ports(3)
        wanted = {
            "port": self.port,
            "more_ports": more,
            "directory": str(directory),
            "counts": str(self._counts),
            "max_batch": setting.max_batch,
            "delay_ms": setting.delay_ms,
            "instances": setting.instances,
            "options": dict(setting.options),
            "cost_ms": load.cost_ms,
            "cost_per_item_ms": load.cost_per_item_ms,
        }
        python = python_of(peer.environment)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(_SERVERS / peer.script)],
                cwd=directory,
                env=_environment(wanted, python),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        return f"ServerProcess({self._peer.name}, pid={self._process.pid})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def caller(self, payloads: list[bytes]) -> Caller:
        """One that speaks what the server speaks."""
        if self._peer.path:
            return HttpCaller(self.port, self._peer.path, is_bento=self._peer.name == "bentoml")
        return OipCaller(self.port, payloads)

    async def wait_ready(self, caller: Caller, payload: bytes) -> None:
        """Returns with its first answer, right or wrong.

        Raises:
            ServerError: there is none in time, or it has ended.
        """
        until, last = time.monotonic() + _READY_S, ""
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise ServerError(f"{self._peer.name} ended with {self._process.returncode}:\n{self._last_words()}")
            try:
                await asyncio.wait_for(caller.call(payload), _FIRST_ANSWER_S)
                return
            except (CallError, TimeoutError) as error:
                last = str(error)
            await asyncio.sleep(_POLL_S)
        raise ServerError(f"{self._peer.name} does not answer after {_READY_S:g} s ({last}):\n{self._last_words()}")

    def usage(self) -> process_tree.Usage:
        """Of all of its processes."""
        return process_tree.usage(self._process.pid)

    def batches(self) -> tuple[int, int]:
        """Batches and items that its models have run."""
        counted = [file.read_bytes() for file in self._counts.iterdir()]
        pairs = [_COUNTS.unpack(data) for data in counted if len(data) == _COUNTS.size]
        return sum(batches for batches, _ in pairs), sum(items for _, items in pairs)

    def stop(self) -> None:
        """Ends it in order where it wants to, and in any case."""
        tree = process_tree.tree_of(self._process.pid, process_tree.processes())
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        now = process_tree.processes()
        # what was in its tree, and is still of its session or has been left behind
        for pid in (tree | process_tree.tree_of(self._process.pid, now)) & set(now):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:])


def _environment(wanted: dict[str, object], python: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "PATH", "TMPDIR") if name in os.environ}
    # Triton's Python backend loads libpython; peers' processes find their own tools first
    libraries = sysconfig.get_config_var("LIBDIR") or ""
    return {
        **kept,
        "PATH": f"{python.parent}{os.pathsep}{kept.get('PATH', '')}",
        "LD_LIBRARY_PATH": libraries,
        "PYTHONUNBUFFERED": "1",
        "STEPLOOM_BENCH": json.dumps(wanted),
        # nothing calls home
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "1",
        "PYTRITON_NO_TELEMETRY": "1",
    }


def _free_ports(count: int) -> list[int]:
    """That are free now; all are held at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
