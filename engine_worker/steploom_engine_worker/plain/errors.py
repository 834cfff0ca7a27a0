"""What can go wrong with a plain model, and whose fault it is."""

from __future__ import annotations

from collections.abc import Sequence


class BrokenModel(ValueError):
    """A model cannot be loaded: its config, its files, or what its own code does at the start.

    Args:
        place: the file, or the field of config.pbtxt.
        problem: what it is, and what it must be.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")


class UnknownModel(LookupError):
    """The repository has no such model, or it is not loaded."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(name)
        self.name = name
        self.known = known  # those that there are instead


class Busy(RuntimeError):
    """The model is being loaded or unloaded."""


class WrongItem(ValueError):
    """One request of a batch is not as the model's config says."""


class WrongOutput(ValueError):
    """What a model gave is not as its config says; the message names the output."""
