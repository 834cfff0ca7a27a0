"""Measures cases in order of weight, each only after its result was held against the reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, Protocol

import torch

from steploom_kernels.bench.case import Case, Function, Inputs, Rival, WrongResult, check, poison
from steploom_kernels.bench.outcome import EAGER, OP, Measured, Report, Timing
from steploom_kernels.bench.roofline import Ceilings

# A rival may round more often than we do; what is much further off computes something else.
RIVAL_TOLERANCE = 10.0  # times the case's
SEED = 20261122


class Machine(Protocol):
    """What is measured on."""

    device: torch.device

    def describe(self) -> dict[str, object]:
        """GPU, versions and clocks, for the report."""

    def ceilings(self) -> Ceilings:
        """Measures copies and a matrix product."""

    def num_sets(self, num_bytes: int) -> int:
        """How many sets of inputs, of so many bytes each, one repeat goes through, so that none is in the cache."""

    def time(self, run: Function, sets: Sequence[Inputs]) -> Timing:
        """Of one call, over repeats that go through all sets."""


def ordered(cases: Iterable[Case]) -> list[Case]:
    """By rank; within a rank each operation gets its turn, so that a run that is cut short has seen all of them."""
    ranks: dict[int, dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        ranks[case.rank][case.op].append(case)
    return [
        case
        for rank in sorted(ranks)
        for turn in zip_longest(*ranks[rank].values())
        for case in turn
        if case is not None
    ]


def run(
    cases: Iterable[Case],
    machine: Machine,
    compilers: Mapping[str, Callable[[Function], Function]],
    *,
    budget_s: float,
    clock: Callable[[], float],
    say: Callable[[Measured, Ceilings], None],
) -> Report:
    """Measures the machine, then case after case until the budget is spent.

    Args:
        cases: in any order.
        machine: where.
        compilers: by name; each makes a faster function of a case's eager one.
        budget_s: seconds after which no further case begins.
        clock: seconds.
        say: called with each result as it comes.
    """
    end = clock() + budget_s
    ceilings = machine.ceilings()
    measured: list[Measured] = []
    waiting = ordered(cases)
    while waiting and clock() < end:
        result = measure(waiting.pop(0), machine, compilers)
        say(result, ceilings)
        measured.append(result)
    return Report(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.describe(),
        ceilings=ceilings,
        measured=measured,
        left_out=[f"{case.op} {case.shape}" for case in waiting],
    )


def measure(case: Case, machine: Machine, compilers: Mapping[str, Callable[[Function], Function]]) -> Measured:
    """One case: first right, then fast. A rival that fails or computes something else is named as absent."""
    blank = Measured(case.op, case.shape, case.num_bytes, case.flops)
    try:
        exact = _exact(case, machine)
        error = _verify(case, Rival(case.run), exact, machine, case.tolerance)
        sets = _sets(case, machine)
        times = {OP: machine.time(case.run, sets)}
    except WrongResult as wrong:
        return replace(blank, problem=str(wrong), is_wrong=True)
    except Exception as failure:  # a kernel that does not compile, or memory that is short: the other cases go on
        return replace(blank, problem=f"{case.op} {case.shape}: {_words(failure)}")
    absent: dict[str, str] = {}
    for name, rival in _rivals(case, compilers, absent):
        try:
            if rival.is_same:
                _verify(case, rival, exact, machine, RIVAL_TOLERANCE * case.tolerance)
            times[name] = machine.time(rival.run, [rival.prepare(*inputs) for inputs in sets])
        except Exception as failure:
            absent[name] = _words(failure)
    return replace(blank, error=error, times=times, absent=absent)


def _rivals(
    case: Case, compilers: Mapping[str, Callable[[Function], Function]], absent: dict[str, str]
) -> Iterator[tuple[str, Rival]]:
    yield EAGER, Rival(case.eager)
    for name, compiled in compilers.items():
        try:
            yield name, Rival(compiled(case.eager))
        except Exception as failure:
            absent[name] = _words(failure)
    yield from case.rivals.items()


def _exact(case: Case, machine: Machine) -> Any:
    return case.reference(*case.make(machine.device, _generator(machine, 0)))


def _verify(case: Case, rival: Rival, exact: Any, machine: Machine, tolerance: float) -> float:
    """Two calls on equal inputs: the first compiles and shows what a result takes, the second is judged."""
    first, second = (rival.prepare(*case.make(machine.device, _generator(machine, 0))) for _ in range(2))
    poison(rival.run(*first))
    return check(case, rival.run(*second), exact, tolerance)


def _sets(case: Case, machine: Machine) -> list[Inputs]:
    count = machine.num_sets(case.num_bytes)
    return [case.make(machine.device, _generator(machine, 1 + index)) for index in range(count)]


def _generator(machine: Machine, index: int) -> torch.Generator:
    return torch.Generator(machine.device).manual_seed(SEED + index)


def _words(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"[:200]
