"""A worker whose device fails on command: `faulty_worker.py FAULTS --config FILE --listen ADDRESS`.

It is the real process over the real engine for GPUs, on whatever device its settings name. Each file in the folder
FAULTS is a fault to come: its name says where, its text which (see `device_faults`). A fault that has come is removed,
unless its text ends with `always`: so what is started again can go on. `poison-assertion`, `poison-address` and
`poison-hang`, of any text, break a GPU indeed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from device_faults import fault

import steploom_engine_worker.__main__ as program
from steploom_engine_worker import graph_engine
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Costs, Done, Engine, Pending
from steploom_engine_worker.graph_engine import GraphEngine, load_graph_engine
from steploom_engine_worker.warmup import warm_up

HANG_CYCLES = 600 * 10**9  # of a GPU: some minutes, should nobody end the process before
STEPS_BEFORE = 3  # a fault in a denoise tick comes when a job has done so many


class FaultyEngine(GraphEngine):
    """See the module."""

    faults: Path
    is_armed = False  # warm-up goes well

    def _record(self) -> None:
        self._meet("record")
        super()._record()

    def encode(self, slots: Sequence[int]) -> Done | Pending:
        if self.is_armed and len(slots) > 1:
            self._meet("encode-of-several")
        return super().encode(slots)

    def denoise(self, slots: Sequence[int], steps: Sequence[int], previewed: Sequence[int] = ()) -> Done | Pending:
        if not self.is_armed or max(steps) < STEPS_BEFORE:
            return super().denoise(slots, steps, previewed)
        self._meet("launch")
        if self._came("poison-assertion"):
            self.slots.latents[torch.tensor([1 << 40], device=self._device)]
        if self._came("poison-address"):
            _write_anywhere(self._device)
        if self._came("poison-hang"):
            with self._main.working():
                torch.cuda._sleep(HANG_CYCLES)  # type: ignore[no-untyped-call]
        return _Faulty(super().denoise(slots, steps, previewed), self)

    def _meet(self, place: str) -> None:
        """Raises the fault that is to come here, if one is."""
        name = self._came(place)
        if name:
            raise fault(name)

    def _came(self, place: str) -> str:
        file = self.faults / place
        if not file.exists():
            return ""
        name, always, _ = file.read_text().partition(" always")
        if not always:
            file.unlink()
        return name


class _Faulty:
    """A tick whose fault shows when it is waited for."""

    def __init__(self, tick: Done | Pending, engine: FaultyEngine) -> None:
        self._tick = tick
        self._engine = engine

    def wait(self) -> Done:
        self._engine._meet("wait")
        return self._tick.wait()


def _write_anywhere(device: torch.device) -> None:
    """A Triton kernel that writes to where nothing is."""
    import wild_kernel  # wants Triton

    wild_kernel.write(torch.zeros(1, device=device))


def python_path() -> str:
    """PYTHONPATH with which the process finds what lies beside this file."""
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def build(config: WorkerConfig) -> tuple[Engine, Costs]:
    """In place of the worker's own way to an engine."""
    engine = load_graph_engine(config)
    assert isinstance(engine, FaultyEngine)
    costs = warm_up(engine, config)
    engine.is_armed = True
    return engine, costs


if __name__ == "__main__":
    FaultyEngine.faults = Path(sys.argv.pop(1))
    torch.set_num_threads(1)
    setattr(graph_engine, "GraphEngine", FaultyEngine)  # noqa: B010  a class has no setter for types
    setattr(program, "build_engine", build)  # noqa: B010
    program.main()
