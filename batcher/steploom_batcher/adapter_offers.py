"""Which adapters the jobs of a model can have: those that every worker has, and that nobody has unloaded.

A new version of an adapter is offered once every worker has it; until then the old one is. A worker that comes up
without an adapter that was loaded by a call is told to load it before its first job, and counts as having it meanwhile.
Workers that leave take no jobs, and do not count. Pure: what workers have comes in, what they should drop goes out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from steploom_batcher.messages import AdapterVersion

Key = tuple[str, str]  # name and digest


class AdapterState(IntEnum):
    """The values are those of steploom.batcher.v1.AdapterState."""

    LOADING = 1  # workers read it; no job can have it yet
    READY = 2  # jobs can have it, perhaps while a new version is read
    UNLOADING = 3  # no new job can have it; some still do
    UNAVAILABLE = 4  # no job can have it


@dataclass(frozen=True)
class AdapterStatus:
    """Where an adapter stands."""

    name: str
    state: AdapterState
    reason: str = ""  # where something is amiss


@dataclass
class _Worker:
    versions: tuple[AdapterVersion, ...]  # of one name from the oldest to the one that counts
    restoring: set[str] = field(default_factory=set)  # names that it was told to load when it came
    is_leaving: bool = False

    @property
    def latest(self) -> dict[str, AdapterVersion]:
        return {item.name: item for item in self.versions}

    @property
    def names(self) -> set[str]:
        """That jobs sent to it find there."""
        return {item.name for item in self.versions} | self.restoring


class AdapterOffers:
    """See the module.

    Attributes:
        offered: by name, in the order in which an automatic choice tries them.
    """

    def __init__(self) -> None:
        self.offered: Mapping[str, AdapterVersion] = {}
        self._workers: dict[str, _Worker] = {}
        self._wanted: dict[str, str] = {}  # by name, the digest of what a call has loaded
        self._unloaded: set[str] = set()
        self._loading: set[str] = set()
        self._problems: dict[str, str] = {}  # of the latest load, by name

    def __repr__(self) -> str:
        return f"AdapterOffers({', '.join(self.offered)}; {len(self._workers)} workers)"

    # Workers

    def worker_up(self, worker: str, versions: tuple[AdapterVersion, ...], in_use: Collection[str]) -> list[str]:
        """A worker has come.

        Args:
            worker: its name.
            versions: that it has.
            in_use: names of the adapters of jobs that live.

        Returns:
            Names that it must load before its first job.
        """
        made = self._workers[worker] = _Worker(versions)
        keys = {_key(item) for item in versions}
        lacking = [name for name, digest in self._wanted.items() if (name, digest) not in keys]
        lacking += [name for name in self._unloaded if name in in_use and name not in made.latest]
        made.restoring = set(lacking)
        self._settle()
        return lacking

    def worker_leaving(self, worker: str) -> None:
        """It takes no more jobs."""
        self._workers[worker].is_leaving = True
        self._settle()

    def worker_down(self, worker: str) -> None:
        """It is gone."""
        del self._workers[worker]
        self._settle()

    def changed(self, worker: str, versions: tuple[AdapterVersion, ...]) -> None:
        """A worker has other versions than before."""
        self._workers[worker].versions = versions
        self._settle()

    def restored(self, worker: str, name: str, problem: str) -> None:
        """A worker has loaded what it lacked when it came, or could not."""
        self._workers[worker].restoring.discard(name)
        if problem:
            self._problems[name] = problem
        self._settle()

    # Calls

    def begin_load(self, name: str) -> None:
        """Workers are told to load it."""
        self._loading.add(name)

    def end_load(self, name: str, digest: str, problem: str) -> None:
        """All workers have the version of a digest; or one has not and why; neither: there is no such adapter."""
        self._loading.discard(name)
        self._problems.pop(name, None)
        if problem:
            self._problems[name] = problem
        elif digest:
            self._wanted[name] = digest
            self._unloaded.discard(name)
        self._settle()

    def unload(self, name: str) -> None:
        """No new job gets it."""
        self._wanted.pop(name, None)
        self._problems.pop(name, None)
        self._unloaded.add(name)
        self._settle()

    # State

    def is_known(self, name: str) -> bool:
        """Whether there is anything to say of it."""
        return any(status.name == name for status in self.statuses())

    def can_run(self, name: str) -> bool:
        """Whether a job that waits finds it on a worker, or is to wait on."""
        return not self._workers or any(name in worker.names for worker in self._present)

    def obsolete(self, in_use: Collection[Key]) -> list[tuple[str, AdapterVersion]]:
        """What workers may forget: versions of what is unloaded, and those that another has taken the place of.

        Args:
            in_use: versions that jobs have.
        """
        names = {name for name, _ in in_use}
        return [
            (name, version)
            for name, worker in self._workers.items()
            for version in worker.versions
            if _key(version) not in in_use and self._is_over(version, worker, names)
        ]

    def statuses(self) -> list[AdapterStatus]:
        """Of all that are offered, loaded, held or have been unloaded: the offered first."""
        held = [item.name for worker in self._workers.values() for item in worker.versions]
        rest = dict.fromkeys((*held, *sorted(self._loading | self._unloaded | self._problems.keys())))
        others = [self._status(name, name in held) for name in rest if name not in self.offered]
        return [AdapterStatus(name, AdapterState.READY, self._amiss(name)) for name in self.offered] + others

    def _status(self, name: str, is_held: bool) -> AdapterStatus:
        if name in self._loading:
            return AdapterStatus(name, AdapterState.LOADING)
        if name in self._unloaded:
            if is_held:
                return AdapterStatus(name, AdapterState.UNLOADING)
            return AdapterStatus(name, AdapterState.UNAVAILABLE, self._problems.get(name) or "unloaded")
        return AdapterStatus(name, AdapterState.UNAVAILABLE, self._problems.get(name) or "not every worker has it")

    def _amiss(self, name: str) -> str:
        if name in self._problems:
            return f"the latest load failed: {self._problems[name]}"
        digests = {worker.latest[name].digest for worker in self._present if name in worker.latest}
        return "workers have different versions of it" if len(digests) > 1 and name not in self._loading else ""

    @property
    def _present(self) -> list[_Worker]:
        """Workers that new jobs can go to; those that leave, where there are no others."""
        return [item for item in self._workers.values() if not item.is_leaving] or list(self._workers.values())

    def _settle(self) -> None:
        present = self._present
        if not present:  # as it was: jobs wait for workers that are expected back
            self.offered = {name: item for name, item in self.offered.items() if name not in self._unloaded}
            return
        held = (item.name for worker in present for item in worker.versions)
        self.offered = {
            name: self._common(name)
            for name in dict.fromkeys((*held, *self.offered))
            if name not in self._unloaded and all(name in worker.names for worker in present)
        }

    def _common(self, name: str) -> AdapterVersion:
        """The latest version that all have; what one has, where there is none; what all are restoring."""
        having = [[item for item in worker.versions if item.name == name] for worker in self._present]
        known = [versions for versions in having if versions]
        if not known:
            return self.offered[name]
        first, *others = known
        common = [item for item in first if all(_key(item) in map(_key, versions) for versions in others)]
        return (common or first)[-1]

    def _is_over(self, version: AdapterVersion, worker: _Worker, in_use: Collection[str]) -> bool:
        name = version.name
        if name in self._loading:
            return False
        if name in self._unloaded:
            return name not in in_use  # a job whose own version is lost gets another
        return version not in (worker.latest[name], self.offered.get(name))


def _key(version: AdapterVersion) -> Key:
    return version.name, version.digest
