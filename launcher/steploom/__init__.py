"""Steploom: the SDK, the command line and the local supervisor.

    from steploom import Client

    with Client() as client:
        client.edit("portrait.png", "put on sunglasses", tier="free").save("sunglasses.png")

`steploom.aio.Client` is the same for asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steploom.access import Tls as Tls
    from steploom.client import Client as Client
    from steploom.errors import DeadlineExceeded as DeadlineExceeded
    from steploom.errors import InternalError as InternalError
    from steploom.errors import InvalidArgument as InvalidArgument
    from steploom.errors import NotFound as NotFound
    from steploom.errors import PermissionDenied as PermissionDenied
    from steploom.errors import ResourceExhausted as ResourceExhausted
    from steploom.errors import SteploomError as SteploomError
    from steploom.errors import Unauthenticated as Unauthenticated
    from steploom.errors import Unavailable as Unavailable
    from steploom.types import Done as Done
    from steploom.types import EditEvent as EditEvent
    from steploom.types import EditResult as EditResult
    from steploom.types import Queued as Queued
    from steploom.types import Started as Started
    from steploom.types import Step as Step
    from steploom.types import Timings as Timings
    from steploom.types import Violation as Violation

_ERRORS = (
    "DeadlineExceeded",
    "InternalError",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "SteploomError",
    "Unauthenticated",
    "Unavailable",
)
_TYPES = ("Done", "EditEvent", "EditResult", "Queued", "Started", "Step", "Timings", "Violation")
_HOMES = {"Client": "client", "Tls": "access"} | dict.fromkeys(_ERRORS, "errors") | dict.fromkeys(_TYPES, "types")

__all__ = ["Client", "Tls", *_ERRORS, *_TYPES]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use: `steploom --help` need not wait for gRPC."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
