"""Which adapters an engine holds: each version has a number of its own, by which slots and rows know it.

A number is given to one version alone as long as that is held: a job that was admitted with it ends with it, whatever
is loaded under the same name meanwhile. Numbers of the model's own adapters are not given again, since an engine may
have them in what it made at its start. Pure: it holds names, not networks. It may be read on any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steploom_engine_worker.adapter_manifest import AdapterManifest
from steploom_engine_worker.description import DescribedAdapter
from steploom_engine_worker.engine import AdapterVersion
from steploom_engine_worker.errors import AdapterRefused


@dataclass(frozen=True)
class Held:
    """A version that is there."""

    version: AdapterVersion
    manifest: AdapterManifest
    number: int


class Shelf:
    """See the module.

    Args:
        adapters: of the model's directory: their numbers are 0, 1 and so on.
        num_spare: versions that there may be beside them at once.
    """

    def __init__(self, adapters: Sequence[DescribedAdapter], num_spare: int = 0) -> None:
        self._held = tuple(
            Held(AdapterVersion(item.name, item.digest, item.manifest.traits), item.manifest, number)
            for number, item in enumerate(adapters)
        )
        self.num_own = len(self._held)
        self._num_spare = num_spare

    def __repr__(self) -> str:
        return f"Shelf({', '.join(f'{item.number}: {item.version.name}' for item in self._held)})"

    @property
    def versions(self) -> tuple[AdapterVersion, ...]:
        """All, those of one name from the oldest to the latest."""
        return tuple(item.version for item in self._held)

    def find(self, name: str, digest: str = "") -> Held:
        """A version; the latest of its name where it is not there, or not named.

        Raises:
            ValueError: there is none of that name.
        """
        known = {item.version.name: item for item in self._held}
        if name not in known:
            raise ValueError(f"adapter {name!r} does not exist; there are: {', '.join(known) or 'none'}")
        exact = (item for item in self._held if (item.version.name, item.version.digest) == (name, digest))
        return next(exact, known[name])

    def place(self) -> int:
        """A number for one more.

        Raises:
            AdapterRefused: all are taken.
        """
        taken = {item.number for item in self._held}
        numbers = range(self.num_own, self.num_own + self._num_spare)
        free = next((number for number in numbers if number not in taken), None)
        if free is None:
            raise AdapterRefused(
                f"worker.spare_adapters is {self._num_spare}, and as many are held that were loaded since the start, "
                "old versions that jobs still use included: unload one, or wait for those jobs"
            )
        return free

    def check(self, number: int) -> None:
        """Whether a number that `place` has given is free yet.

        Raises:
            AdapterRefused: it is another's by now.
        """
        if any(item.number == number for item in self._held):
            raise AdapterRefused("another adapter was loaded meanwhile: load this one again")

    def put(self, number: int, version: AdapterVersion, manifest: AdapterManifest) -> None:
        """Jobs by its name get it from now on.

        Raises:
            AdapterRefused: see `check`.
        """
        self.check(number)
        self._held = _joined(self._held, Held(version, manifest, number))

    def holds(self, version: AdapterVersion) -> bool:
        """Whether it is there."""
        return version in self.versions

    def renew(self, version: AdapterVersion) -> None:
        """Makes a version that is there the latest of its name."""
        renewed = next(item for item in self._held if item.version == version)
        if self.find(version.name) is not renewed:
            self._held = _joined([item for item in self._held if item is not renewed], renewed)

    def drop(self, name: str, digest: str) -> int | None:
        """Forgets a version; its number, or None where it was not there."""
        found = next((item for item in self._held if (item.version.name, item.version.digest) == (name, digest)), None)
        if found is None:
            return None
        self._held = tuple(item for item in self._held if item is not found)
        return found.number


def _joined(held: Sequence[Held], latest: Held) -> tuple[Held, ...]:
    """With one more behind those of its name, so that names keep their order: an automatic choice goes by it."""
    place = max((at for at, item in enumerate(held, 1) if item.version.name == latest.version.name), default=len(held))
    return (*held[:place], latest, *held[place:])
