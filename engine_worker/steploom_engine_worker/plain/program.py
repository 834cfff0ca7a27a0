"""What an instance runs: the one interface behind which the formats of models differ."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from steploom_engine_worker.plain.datatypes import Array
from steploom_engine_worker.plain.spec import ModelSpec

# In the environment, "1": torch.load takes tensors and plain values alone, whatever its caller says.
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

Value = bool | int | float | str


class Parameters(list[Mapping[str, Value]]):
    """The parameters of each request of a batch, in their order.

    Args:
        values: one mapping for each request; empty where it has none.
        rows: how many rows of the batch each request has; 0: tensors have no dimension of the batch.
    """

    def __init__(self, values: Sequence[Mapping[str, Value]], rows: Sequence[int]) -> None:
        super().__init__(values)
        self.rows = tuple(rows)


class Program(Protocol):
    """A model in memory. Made and used on the thread of its instance alone."""

    def infer(self, inputs: dict[str, Array], parameters: Parameters) -> Mapping[str, Array]:
        """Runs a batch.

        Args:
            inputs: by name, [rows, *dims]; without optional ones that the requests lack.
            parameters: of the requests.

        Returns:
            The outputs by name, [rows, *dims].

        Raises:
            WrongOutput: an output is of a kind that has no array; names it.
            BaseException: whatever the model raises.
        """

    def warm_up(self) -> None:
        """Whatever the model itself does before it is used."""

    def close(self) -> None:
        """The model is used no more."""


@dataclass(frozen=True)
class Origin:
    """Where a program comes from."""

    spec: ModelSpec
    backend: str
    file: Path
    module_name: str  # under which code of a file is known: no two loads share one
    lock: threading.Lock = field(default_factory=threading.Lock)  # of what its instances share
