"""The model that every peer serves: it answers what it was asked, after as long as it is told to take.

Runs in the peers' own environments, on nothing but numpy. What it is to do stands in the variable STEPLOOM_BENCH, as
`steploom_benchmarks/server_process.py` writes it; batches are counted in a file of each process that runs any.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_COUNTS = struct.Struct("<QQ")  # batches, items

Items = np.ndarray[Any, np.dtype[np.uint8]]  # [items, bytes]


def wanted() -> dict[str, Any]:
    """What the harness asks of this server."""
    said: dict[str, Any] = json.loads(os.environ["STEPLOOM_BENCH"])
    return said


class Model:
    """One instance of it."""

    def __init__(self) -> None:
        said = wanted()
        self._cost_s = said["cost_ms"] / 1000
        self._cost_per_item_s = said["cost_per_item_ms"] / 1000
        path = Path(said["counts"]) / f"{os.getpid()}-{id(self)}"
        path.write_bytes(bytes(_COUNTS.size))
        with path.open("r+b") as file:
            self._file = mmap.mmap(file.fileno(), _COUNTS.size)
        self._batches = self._items = 0

    def run(self, items: Items) -> Items:
        """[items, bytes] in and out. It sleeps, as a thread does that waits for an accelerator."""
        seconds = self._cost_s + self._cost_per_item_s * len(items)
        if seconds > 0:
            time.sleep(seconds)
        self._batches += 1
        self._items += len(items)
        _COUNTS.pack_into(self._file, 0, self._batches, self._items)
        return items

    def run_bodies(self, bodies: Sequence[bytes]) -> list[bytes]:
        """The same for servers that batch lists of bodies: a model wants one array of them all."""
        stacked = np.stack([np.frombuffer(body, np.uint8) for body in bodies])
        return [row.tobytes() for row in self.run(stacked)]
