"""Where the services of one user find each other: the runtime folder."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
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


def is_local(address: str) -> bool:
    """Whether an address, as unix:/path or host:port, is of this host alone: what goes there is on no network."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
