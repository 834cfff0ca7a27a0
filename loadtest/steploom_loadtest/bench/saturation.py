"""A service that always has more to do than it can: what it gives, and what its device does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from steploom_loadtest.bench.device_share import DeviceShare, device_share
from steploom_loadtest.child import StackError
from steploom_loadtest.open_loop import Payload, run_closed_loop
from steploom_loadtest.report import OK, ClassReport, Record, summarize
from steploom_loadtest.stack import Stack
from steploom_loadtest.traces import RequestClass, patient

WARM_SHARE = 0.5  # of the measured time, before it: until the mix of jobs in the slots is about that of the requests

_POLL_S = 0.05
_PATIENCE_S = 300.0  # beyond the measured time, until each class has a picture
_EMPTY_S = 120.0  # until the service has let go of the requests that are open at the end


@dataclass(frozen=True)
class Saturation:
    """One mix, measured in a window that begins when the service is warm with it."""

    seconds: float  # of the window
    classes: Sequence[ClassReport]  # requests that ended in the window
    failed: int  # of them, without a picture
    device: DeviceShare

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return sum(item.ok for item in self.classes) / self.seconds

    def rate_of(self, label: str) -> float:
        """Pictures a second of one class."""
        return sum(item.ok for item in self.classes if item.label == label) / self.seconds


def saturate(stack: Stack, mix: Sequence[RequestClass], callers: int, seconds: float, payload: Payload) -> Saturation:
    """Keeps `callers` requests open, counts for `seconds`, and until each class has a picture; then cancels them.

    Raises:
        StackError: a class has none for long.
    """
    measured = asyncio.run(_measure(stack, mix, callers, seconds, payload))
    stack.wait_metric("steploom_gateway_in_flight", 0, _EMPTY_S)  # it may still have to hear of the last cancels
    stack.wait_until(lambda status: not any(tier.queued + tier.running for tier in status.tiers), _EMPTY_S)
    return measured


async def _measure(
    stack: Stack, mix: Sequence[RequestClass], callers: int, seconds: float, payload: Payload
) -> Saturation:
    kinds = [patient(kind) for kind in mix for _ in range(kind.weight)]
    ended: list[Record] = []
    clock = asyncio.get_running_loop().time
    load = asyncio.create_task(
        run_closed_loop(stack.gateway, kinds, callers, math.inf, payload, on_record=ended.append)
    )
    try:
        await asyncio.sleep(WARM_SHARE * seconds)
        before, began = await asyncio.to_thread(stack.status), clock()
        first = len(ended)
        await asyncio.sleep(seconds)
        labels = {kind.label for kind in kinds}
        while labels - {record.arrival.label for record in ended[first:] if record.status == OK}:
            if load.done() or clock() - began > seconds + _PATIENCE_S:
                raise StackError(f"no picture of each of {', '.join(sorted(labels))} in {clock() - began:.0f} s")
            await asyncio.sleep(_POLL_S)
        after, over = await asyncio.to_thread(stack.status), clock()
        window = ended[first:]
    finally:
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
    failed = sum(record.status != OK for record in window)
    return Saturation(over - began, summarize(window).classes, failed, device_share(before, after, over - began))


def capacity(mix: Sequence[RequestClass], together: Saturation, alone: dict[str, Saturation]) -> float:
    """Requests of the mix a second, had its classes ended in just the shares of the mix.

    In a short window one class may end oftener than the callers ask for it. What each class costs is known from
    saturation with it alone: the work done in the window is counted in that, and divided by the work of a request.

    Args:
        mix: classes and their shares.
        together: saturation with the mix.
        alone: saturation with each class alone, by label.
    """
    cost_s = {label: 1.0 / found.rate for label, found in alone.items()}
    work = sum(together.rate_of(label) * seconds for label, seconds in cost_s.items())
    total = sum(kind.weight for kind in mix)
    return work / sum(kind.weight / total * cost_s[patient(kind).label] for kind in mix)
