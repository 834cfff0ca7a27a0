"""Cost tables to simulate with: seconds by stage and bucket, made by a formula, shipped with the package or measured.

A file of tables is JSON: what a device was, how many jobs it holds, and seconds of each bucket of each stage. `steploom
costs` writes one of the workers that run; those in `tables/` are of devices that were measured once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steploom_batcher.types import Key, Stage, StageCosts, WorkerProfile

_SHIPPED = Path(__file__).parent / "tables"
_MAX_SECONDS = 3600.0  # of a tick
_MAX_SLOTS = 65_536
_KEY = Key("simulated", ())  # all simulated workers serve one model


class TableError(ValueError):
    """A file of cost tables that cannot be used; the message names the file, the field and the bound."""


@dataclass(frozen=True)
class DeviceCosts:
    """What one device takes."""

    name: str  # of the device, for people
    slots: int  # jobs that it holds at once
    seconds: StageCosts  # of every bucket of every stage

    def profile(self, worker_id: str) -> WorkerProfile:
        """A worker with such a device."""
        return WorkerProfile(worker_id, _KEY, self.slots, self.seconds)


@dataclass(frozen=True)
class CostTable:
    """What a file of tables holds."""

    source: str  # how the figures came about
    devices: Sequence[DeviceCosts]  # at least one

    def workers(self, count: int) -> list[DeviceCosts]:
        """So many workers: the devices in turn."""
        return [self.devices[number % len(self.devices)] for number in range(count)]

    def to_json(self) -> str:
        """The content of a file."""
        devices = [
            {
                "name": device.name,
                "slots": device.slots,
                "seconds": {
                    stage.name.lower(): {str(bucket): seconds for bucket, seconds in sorted(table.items())}
                    for stage, table in device.seconds.items()
                },
            }
            for device in self.devices
        ]
        return json.dumps({"source": self.source, "devices": devices}, indent=2) + "\n"


def shipped() -> list[str]:
    """Names of the tables that come with the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.json"))


def read_table(name: str) -> CostTable:
    """The table of that name that comes with the package, else that of the file.

    Raises:
        TableError: there is none, or it is wrong.
    """
    path = _SHIPPED / f"{name}.json" if name in shipped() else Path(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(shipped())
        raise TableError(f"no cost table {name}: {error.strerror}; those that are here: {known}") from None
    except ValueError as error:
        raise TableError(f"{path} is no JSON: {error}") from None
    try:
        return _parse(content)
    except TableError as error:
        raise TableError(f"{path}: {error}") from None


def linear(
    encode: tuple[float, float],
    denoise: tuple[float, float],
    decode: tuple[float, float],
    rows: tuple[int, ...] = (1, 2, 3, 4, 6, 9, 12, 18, 24),
    jobs: tuple[int, ...] = (1, 2, 4),
) -> Mapping[Stage, Mapping[int, float]]:
    """Each stage costs (seconds of a tick, seconds more for each row or job in it)."""
    return {
        Stage.ENCODE: {bucket: encode[0] + encode[1] * bucket for bucket in jobs},
        Stage.DENOISE: {bucket: denoise[0] + denoise[1] * bucket for bucket in rows},
        Stage.DECODE: {bucket: decode[0] + decode[1] * bucket for bucket in jobs},
    }


def _parse(content: Any) -> CostTable:
    if not isinstance(content, dict):
        raise TableError("must be an object with source and devices")
    devices = content.get("devices")
    if not isinstance(devices, list) or not devices:
        raise TableError("devices must be a list of at least one")
    parsed = [_device(device, f"devices[{place}]") for place, device in enumerate(devices)]
    return CostTable(str(content.get("source", "")), parsed)


def _device(content: Any, where: str) -> DeviceCosts:
    if not isinstance(content, dict):
        raise TableError(f"{where} must be an object with name, slots and seconds")
    slots = content.get("slots")
    if not isinstance(slots, int) or isinstance(slots, bool) or not 1 <= slots <= _MAX_SLOTS:
        raise TableError(f"{where}.slots is {slots!r}, must be a whole number from 1 to {_MAX_SLOTS}")
    tables = content.get("seconds")
    if not isinstance(tables, dict):
        raise TableError(f"{where}.seconds must be an object with encode, denoise and decode")
    names = {stage.name.lower(): stage for stage in Stage}
    for name in tables.keys() - names.keys():
        raise TableError(f"{where}.seconds.{name} is no stage: {', '.join(names)}")
    seconds = {stage: _stage(tables.get(name), f"{where}.seconds.{name}") for name, stage in names.items()}
    return DeviceCosts(str(content.get("name", "device")), slots, seconds)


def _stage(content: Any, where: str) -> Mapping[int, float]:
    if not isinstance(content, dict) or not content:
        raise TableError(f"{where} must be an object of at least one bucket and its seconds")
    table = {}
    for bucket, seconds in content.items():
        if not bucket.isdecimal() or int(bucket) < 1:
            raise TableError(f"{where} has a bucket {bucket!r}, must be a whole number of at least 1")
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not is_number or not math.isfinite(seconds) or not 0 <= seconds <= _MAX_SECONDS:
            raise TableError(f"{where}.{bucket} is {seconds!r}, must be seconds from 0 to {_MAX_SECONDS:g}")
        table[int(bucket)] = float(seconds)
    return dict(sorted(table.items()))
