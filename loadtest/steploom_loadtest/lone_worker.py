"""An engine worker of its own, which stays warm while the services in front of it are started anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from steploom_loadtest.child import Child, StackError
from steploom_loadtest.stack import Tables, is_healthy, to_toml

_END_S = 120.0


@contextmanager
def lone_worker(directory: Path, tables: Tables, ready_s: float) -> Iterator[str]:
    """Its address, for `batcher.workers`, for the length of a `with` block.

    Args:
        directory: for socket, configuration and log; its path must be short enough for a socket.
        tables: settings; the table `worker` is read.
        ready_s: seconds until it must be warm.

    Raises:
        StackError: it is not warm in time, or has ended.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "worker.toml"
    config.write_text(to_toml({"worker": tables["worker"]}))
    address = f"unix:{directory / 'worker.sock'}"
    arguments = ("-m", "steploom_engine_worker", "--config", str(config), "--listen", address)
    worker = Child("the engine worker", arguments, directory / "worker.log")

    def is_warm() -> bool:
        worker.check_alive()
        return is_healthy(address)

    try:
        worker.wait(is_warm, ready_s, "is not ready")
        yield address
        with suppress(StackError):  # what was measured stands, however it ends
            worker.stop(_END_S)
    finally:
        worker.kill()
