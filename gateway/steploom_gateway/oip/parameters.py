"""Parameters of a request, a tensor or an output: taken out by name and kind, and what is left over is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steploom_common.errors import Violation
from steploom_protos.inference import grpc_service_pb2 as pb

Value = bool | int | float | str

# Of a list that comes in, and of faults that are named: clients take 8 KiB of metadata, and each stands there thrice.
MAX_ENTRIES = 8

MAX_NAME = 60  # characters of a name from outside, in an answer

# The first and the last number that fields of a request can hold.
UINT32 = (0, 2**32 - 1)
UINT64 = (0, 2**64 - 1)


class Parameters:
    """Args:
    where: path of the map in the request, for violations.
    given: the map.
    problems: where violations go.
    """

    def __init__(self, where: str, given: Mapping[str, pb.InferParameter], problems: list[Violation]) -> None:
        self._where = where
        self._given = given
        self._problems = problems
        self._known: list[str] = []

    def text(self, name: str) -> str:
        """A word; empty where it is absent."""
        value = self._value(name)
        if isinstance(value, str):
            return value
        if value is not None:
            self._refuse(name, value, "a string")
        return ""

    def switch(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name)
        if isinstance(value, bool):
            return value
        if value is not None:
            self._refuse(name, value, "a bool")
        return default

    def number(self, name: str) -> float | None:
        """Any number."""
        value = self._value(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if value is not None:
            self._refuse(name, value, "a number")
        return None

    def whole(self, name: str, bounds: tuple[int, int]) -> int | None:
        """A whole number within bounds, both included. Digits will do: clients cannot send all as a number."""
        value = self._value(name)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(UINT64[1])):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and bounds[0] <= value <= bounds[1]:
            return value
        if value is not None:
            self._refuse(name, value, f"a whole number from {bounds[0]} to {bounds[1]}")
        return None

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of several words; empty where it is absent."""
        value = self._value(name)
        if value is None or value in choices:
            return str(value or "")
        self._refuse(name, value, f"one of {', '.join(choices)}")
        return ""

    def finish(self) -> None:
        """Refuses what nobody has asked for: a name that is misspelt must not be passed over."""
        num_unknown = len(self._given) - sum(name in self._given for name in self._known)
        if num_unknown > MAX_ENTRIES:
            self._problems.append(Violation(self._where, f"has {num_unknown} entries that do not exist"))
            return
        hint = f"; there are: {', '.join(sorted(self._known))}"
        for name in self._given:
            if name not in self._known:
                self._problems.append(Violation(f"{self._where}.{name[:MAX_NAME]}", f"does not exist{hint}"))
                hint = ""

    def _value(self, name: str) -> Value | None:
        self._known.append(name)
        if name not in self._given:
            return None
        kind = self._given[name].WhichOneof("parameter_choice")
        if kind is None:
            self._problems.append(Violation(f"{self._where}.{name}", "has no value"))
            return None
        value: Value = getattr(self._given[name], kind)
        return value

    def _refuse(self, name: str, value: Value, wanted: str) -> None:
        self._problems.append(Violation(f"{self._where}.{name}", f"is {_shown(value)}, must be {wanted}"))


def parameter(value: Value) -> pb.InferParameter:
    """A value in the field of its kind; whole numbers that int64 cannot hold go where they fit."""
    match value:
        case bool():
            return pb.InferParameter(bool_param=value)
        case int():
            return pb.InferParameter(int64_param=value) if value < 2**63 else pb.InferParameter(uint64_param=value)
        case float():
            return pb.InferParameter(double_param=value)
        case str():
            return pb.InferParameter(string_param=value)


def _shown(value: Value) -> str:
    return repr(value if not isinstance(value, str) else value[:100])
