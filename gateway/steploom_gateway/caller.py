"""Who calls: known to whatever answers a call, and to nobody else, through a context variable."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field

from steploom_common.errors import PermissionDenied


@dataclass(frozen=True)
class Caller:
    """The identity behind a call."""

    name: str  # of the token; empty: nobody is asked for one
    tiers: tuple[str, ...] = ()  # that it may ask for; empty: all
    is_admin: bool = False  # may change what the service serves
    # Holds a place of its quota, or raises `Exhausted`: for streams whose requests count one by one.
    place: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, compare=False, repr=False)

    @property
    def own_tier(self) -> str:
        """The tier of a request that names none; empty: the service's default."""
        return self.tiers[0] if self.tiers else ""

    def check_tier(self, tier: str) -> None:
        """Raises:
        PermissionDenied: the tier is not among those that the caller may ask for.
        """
        if self.tiers and tier not in self.tiers:
            raise PermissionDenied(f"token {self.name!r} is for tiers {', '.join(self.tiers)}, not for {tier!r}")


ANYBODY = Caller("", is_admin=True)  # where no tokens are asked for

_CURRENT: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


def current_caller() -> Caller:
    """Who has made the call that is being answered."""
    return _CURRENT.get()


def answer_for(caller: Caller) -> None:
    """From now on this task answers a call of `caller`. Each call has a task of its own, so nothing is to be undone."""
    _CURRENT.set(caller)
