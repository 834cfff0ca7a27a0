"""Which recordings of ticks there are, which of them a tick takes, and which is made next.

The one idea: a recording serves every tick that is no larger, and the gated form of the UNet serves the rows of every
adapter and of none. So the largest of each stage are enough to serve, and every other one only spares padding. Pure: it
holds names of recordings, not the recordings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from steploom_engine_worker.engine import Stage

PLAIN, GATED = -1, -2  # forms of the UNet beside those of single adapters, which have their numbers

Kind = tuple[Stage, int]  # a stage in a form of its network: PLAIN but for denoise ticks


class Recording(NamedTuple):
    """A bucket of a stage, in a form of its network."""

    stage: Stage
    form: int
    bucket: int

    def __str__(self) -> str:
        names = {PLAIN: "", GATED: " gated"}
        return f"{self.stage.name.lower()}{names.get(self.form, f' adapter {self.form}')} {self.bucket}"


class Readiness:
    """See the module.

    Args:
        buckets: of each kind, rising. Those of encode and decode have the form PLAIN; where there are adapters, denoise
            has the form GATED, which holds as much as any.
        alone: rows or jobs of a tick with one job of a kind, where such ticks are common.
    """

    def __init__(self, buckets: Mapping[Kind, Sequence[int]], alone: Mapping[Kind, int]) -> None:
        self._buckets = dict(buckets)
        self._apart: set[int] = set()  # forms whose rows the gated one does not hold
        self._recorded: dict[Kind, list[int]] = {kind: [] for kind in buckets}
        self._wanted: Counter[Recording] = Counter()  # ticks that would have taken one that is not there
        first = {Recording(*kind, _smallest(buckets[kind], count)) for kind, count in alone.items()}
        place = {kind: number for number, kind in enumerate(buckets)}
        every = (Recording(*kind, bucket) for kind, sizes in buckets.items() for bucket in sizes)
        self._missing = sorted(every, key=lambda item: (item not in first, item.bucket, place[item[:2]]))
        self._total = len(self._missing)

    def __repr__(self) -> str:
        return f"Readiness({self.progress}, next={self.next()})"

    @property
    def kinds(self) -> Collection[Kind]:
        """All that there are recordings of, or will be."""
        return self._buckets.keys()

    @property
    def progress(self) -> tuple[int, int]:
        """How many recordings there are, and how many there will be."""
        return self._total - len(self._missing), self._total

    @property
    def needed(self) -> list[Recording]:
        """Those without which some tick has none: the largest of each stage, of the forms that take any row."""
        return [Recording(*kind, sizes[-1]) for kind, sizes in self._buckets.items() if kind[1] in (PLAIN, GATED)]

    def next(self) -> Recording | None:
        """The one to make: what ticks wanted most, else a job alone first, then the small before the large."""
        return max(self._missing, key=lambda item: self._wanted[item], default=None)

    def add_form(self, form: int, sizes: Sequence[int]) -> Recording:
        """One more form of denoise ticks, whose rows no other form holds.

        Returns:
            The recording without which it serves no tick.
        """
        self._apart.add(form)
        self._buckets[Stage.DENOISE, form] = sizes
        self._recorded[Stage.DENOISE, form] = []
        self._missing += [Recording(Stage.DENOISE, form, bucket) for bucket in sizes]
        self._total += len(sizes)
        return Recording(Stage.DENOISE, form, sizes[-1])

    def drop_form(self, form: int) -> None:
        """There is no tick in a form any more."""
        kind = (Stage.DENOISE, form)
        gone = len(self._missing)
        self._missing = [item for item in self._missing if item[:2] != kind]
        self._total -= gone - len(self._missing) + len(self._recorded.pop(kind))
        del self._buckets[kind]
        for recording in [item for item in self._wanted if item[:2] == kind]:
            del self._wanted[recording]
        self._apart.discard(form)

    def add(self, recording: Recording) -> None:
        """It is there."""
        self._missing.remove(recording)
        self._recorded[recording[:2]].append(recording.bucket)
        self._recorded[recording[:2]].sort()

    def drop(self, recording: Recording) -> None:
        """It cannot be made; ticks go on without it."""
        self._missing.remove(recording)
        self._total -= 1

    def forget_wanted(self) -> None:
        """Ticks until now are no measure of those to come."""
        self._wanted.clear()

    def take(self, stage: Stage, form: int, count: int) -> Recording:
        """What a tick runs on; it counts as wanting what would have fitted it best.

        Raises:
            ValueError: no bucket holds as many.
        """
        best = Recording(stage, form, _smallest(self._buckets[stage, form], count))
        taken = self.look_up(stage, form, count)
        if taken != best:
            self._wanted[best] += 1
        return taken

    def look_up(self, stage: Stage, form: int, count: int) -> Recording:
        """The smallest recording that holds a tick, of its own form where there are two.

        Raises:
            ValueError: there is none.
        """
        others = () if form in self._apart else ((stage, GATED),)
        kinds: list[Kind] = [kind for kind in ((stage, form), *others) if kind in self._recorded]
        fitting = [
            Recording(*kind, sizes[place])
            for kind, sizes in ((kind, self._recorded[kind]) for kind in kinds)
            if (place := bisect_left(sizes, count)) < len(sizes)
        ]
        if not fitting:
            raise ValueError(f"{count} in a tick, nothing recorded holds as many")
        return min(fitting, key=lambda item: item.bucket)  # of equals the first: its own form


def _smallest(buckets: Sequence[int], count: int) -> int:
    """The smallest bucket that is large enough.

    Raises:
        ValueError: none is.
    """
    place = bisect_left(buckets, count)
    if place == len(buckets):
        raise ValueError(f"{count} in a tick, the largest bucket is {buckets[-1]}")
    return buckets[place]
