"""Where the services of one user find each other: the runtime folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def runtime_path(configured: str, environment: Mapping[str, str], user_id: int) -> Path:
    """The runtime folder: as configured, else below $XDG_RUNTIME_DIR, else in /tmp."""
    if configured:
        return Path(configured).expanduser()
    if environment.get("XDG_RUNTIME_DIR"):
        return Path(environment["XDG_RUNTIME_DIR"]) / "steploom"
    return Path("/tmp") / f"steploom-{user_id}"


def socket_address(runtime: Path, service: str) -> str:
    """The address of a service's socket, such as unix:/run/user/1000/steploom/batcher.sock."""
    return f"unix:{runtime / service}.sock"
