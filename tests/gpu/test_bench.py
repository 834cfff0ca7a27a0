"""The benchmark's logic, on the CPU with times that are made up: order, checks, arithmetic, verdicts and reports."""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from steploom_kernels import operations
from steploom_kernels.bench import __main__ as command
from steploom_kernels.bench import cases as families
from steploom_kernels.bench.case import Case, Function, Inputs, Rival, WrongResult, check
from steploom_kernels.bench.cases import all_cases, all_plans
from steploom_kernels.bench.copy_kernel import copy_triton
from steploom_kernels.bench.harness import measure, ordered, run
from steploom_kernels.bench.machine import num_sets, quantiles
from steploom_kernels.bench.outcome import COMPILED, EAGER, OP, Measured, Report, Timing, Verdict
from steploom_kernels.bench.report import line, markdown, table, to_json
from steploom_kernels.bench.roofline import Ceilings, CopyPoint

# 100 GB/s at best; small copies are slow for their launch.
CEILINGS = Ceilings(
    copies=(CopyPoint(1_000_000, 20e-6, "cuda"), CopyPoint(10_000_000, 110e-6, "triton"), CopyPoint(10**8, 1e-3, "t")),
    matmul_flops=1e12,
)


def timing(seconds: float) -> Timing:
    return Timing(seconds, 0.9 * seconds, 1.2 * seconds)


def plain(x: Tensor) -> Tensor:
    return x + x


def double(x: Tensor) -> Tensor:
    return 2 * x


def faster(x: Tensor) -> Tensor:
    return x.mul(2)


def wrong(x: Tensor) -> Tensor:
    return 2.1 * x


def case(op: str = "double", rank: int = 0, **fields: Any) -> Case:
    given = Case(
        op=op,
        shape="4 x 5",
        make=lambda device, generator: (torch.randn(4, 5, device=device, generator=generator),),
        run=double,
        eager=plain,
        reference=lambda x: 2 * x.double(),
        num_bytes=10**8,
        tolerance=1e-6,
        rank=rank,
    )
    return replace(given, **fields)


@dataclass
class FakeMachine:
    """Takes as long as it is told, by function, and moves its own clock on."""

    seconds: dict[Function, float] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    now: float = 0.0
    case_s: float = 10.0  # on the clock, for one measurement
    timed: list[Function] = field(default_factory=list)
    sets: list[Sequence[Inputs]] = field(default_factory=list)

    def describe(self) -> dict[str, object]:
        return {"gpu": "Fake 1000", "torch": "2.0", "triton": "3.0"}

    def ceilings(self) -> Ceilings:
        self.now += 5.0
        return CEILINGS

    def num_sets(self, num_bytes: int) -> int:
        return 3

    def time(self, run: Function, sets: Sequence[Inputs]) -> Timing:
        self.now += self.case_s
        self.timed.append(run)
        self.sets.append(sets)
        return timing(self.seconds.get(run, 1e-3))


def compiled(function: Function) -> Function:
    return faster


def test_cases_come_by_rank_and_operations_take_turns() -> None:
    names = [("a", 1), ("a", 0), ("a", 0), ("b", 1), ("a", 0), ("b", 0), ("c", 3)]
    given = [case(op, rank, shape=str(index)) for index, (op, rank) in enumerate(names)]
    assert [f"{each.op}{each.shape}" for each in ordered(given)] == ["a1", "b5", "a2", "a4", "a0", "b3", "c6"]


def test_a_right_kernel_is_timed_beside_its_rivals() -> None:
    machine = FakeMachine({double: 1e-3, plain: 3e-3, faster: 2e-3, wrong: 4e-3})
    rivals = {"other": Rival(wrong, is_same=False)}
    result = measure(case(rivals=rivals), machine, {COMPILED: compiled})
    assert (result.problem, dict(result.absent)) == ("", {})
    assert {name: each.median_s for name, each in result.times.items()} == {
        OP: 1e-3,
        EAGER: 3e-3,
        COMPILED: 2e-3,
        "other": 4e-3,
    }
    assert result.error == pytest.approx(0.0, abs=1e-6)
    assert [result.ratio(name) for name in (EAGER, COMPILED, "other", "none")] == pytest.approx([3, 2, 4, None])


def test_a_wrong_kernel_is_not_timed() -> None:
    machine = FakeMachine()
    result = measure(case(run=wrong), machine, {COMPILED: compiled})
    assert result.is_wrong
    assert "double 4 x 5: relative error 0.05, at most 1e-06" in result.problem
    assert (machine.timed, dict(result.times)) == ([], {})
    assert result.verdict(CEILINGS) is Verdict.WRONG


def unwritten(x: Tensor) -> Tensor:
    out = torch.empty_like(x).fill_(math.nan)  # as poisoned memory is
    out[:, 1:] = 2 * x[:, 1:]
    return out


def missing_row(x: Tensor) -> Tensor:
    return 2 * x[1:]


@pytest.mark.parametrize(("function", "cause"), [(unwritten, "relative error nan"), (missing_row, "shapes")])
def test_what_is_not_written_is_wrong(function: Function, cause: str) -> None:
    result = measure(case(run=function), FakeMachine(), {})
    assert result.is_wrong
    assert cause in result.problem


def test_zero_is_only_equal_to_zero() -> None:
    zeros = torch.zeros(3)
    assert check(case(), zeros, zeros, 0.0) == 0.0
    with pytest.raises(WrongResult, match="relative error inf"):
        check(case(), zeros + 1e-9, zeros, 1.0)


def test_each_of_several_results_is_checked() -> None:
    one, two = torch.ones(3), torch.full((3,), 2.0)
    assert check(case(), (one, two), (one, two), 0.0) == 0.0
    with pytest.raises(WrongResult):
        check(case(), (one, one), (one, two), 0.1)
    with pytest.raises(WrongResult, match="shapes"):
        check(case(), (one,), (one, two), 0.1)


def test_a_kernel_that_fails_leaves_the_others() -> None:
    def failing(x: Tensor) -> Tensor:
        raise RuntimeError("out of shared memory\nsecond line")

    machine = FakeMachine()
    report = run([case("bad", run=failing), case("good")], machine, {}, **free(machine))
    assert [each.problem for each in report.measured] == ["bad 4 x 5: RuntimeError: out of shared memory", ""]
    assert [each.verdict(CEILINGS) for each in report.measured] == [Verdict.FAILED, Verdict.HOLDS]
    assert not report.is_right


def test_a_rival_that_fails_or_differs_is_absent_with_the_cause() -> None:
    def uncompilable(function: Function) -> Function:
        raise RuntimeError("no compiler")

    result = measure(case(rivals={"off": Rival(wrong)}), FakeMachine(), {COMPILED: uncompilable})
    assert set(result.times) == {OP, EAGER}
    assert result.absent[COMPILED] == "RuntimeError: no compiler"
    assert "relative error 0.05, at most 1e-05" in result.absent["off"]
    assert result.verdict(CEILINGS) is Verdict.HOLDS


def test_a_rival_may_bring_the_inputs_into_its_layout() -> None:
    def transposed(x: Tensor) -> Tensor:
        assert x.shape == (5, 4)
        return 2 * x.T

    machine = FakeMachine()
    result = measure(case(rivals={"other": Rival(transposed, prepare=lambda x: (x.T,))}), machine, {})
    assert "other" in result.times
    assert [tuple(inputs[0].shape) for inputs in machine.sets[-1]] == [(5, 4)] * 3


def test_inputs_differ_from_set_to_set_and_not_from_run_to_run() -> None:
    machine = FakeMachine()
    measure(case(), machine, {})
    measure(case(), machine, {})
    first, _, again, _ = ([inputs[0] for inputs in sets] for sets in machine.sets)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_what_works_in_place_is_checked_on_fresh_inputs() -> None:
    in_place = case(run=lambda x: x.mul_(2), eager=lambda x: x.mul_(2))
    assert measure(in_place, FakeMachine(), {}).problem == ""


def free(machine: FakeMachine, budget_s: float = 1e9) -> dict[str, Any]:
    return {"budget_s": budget_s, "clock": lambda: machine.now, "say": lambda each, ceilings: None}


def test_no_case_begins_after_the_budget() -> None:
    machine = FakeMachine()  # 5 s for the ceilings, 20 s a case: itself and eager
    given = [case("late", 1), case("first"), case("second")]
    report = run(given, machine, {}, **free(machine, budget_s=26.0))
    assert [each.op for each in report.measured] == ["first", "second"]
    assert report.left_out == ["late 4 x 5"]
    assert run(given, machine, {}, **free(machine, budget_s=25.0)).left_out == ["second 4 x 5", "late 4 x 5"]


def test_results_are_told_as_they_come() -> None:
    machine, told = FakeMachine(), []
    options = free(machine) | {"say": lambda each, ceilings: told.append((each.op, ceilings, machine.now))}
    run([case("a"), case("b")], machine, {}, **options)
    assert told == [("a", CEILINGS, 25.0), ("b", CEILINGS, 45.0)]


@pytest.mark.parametrize(
    ("num_bytes", "seconds"),
    [
        (1_000_000, 20e-6),
        (100, 20e-6),
        (10_000_000, 110e-6),
        (5_500_000, 65e-6),
        (55_000_000, 555e-6),
        (10**8, 1e-3),
        (2 * 10**8, 2e-3),
    ],
)
def test_a_copy_of_another_size_is_interpolated(num_bytes: int, seconds: float) -> None:
    assert CEILINGS.copy_s(num_bytes) == pytest.approx(seconds)


def test_the_roofline_is_the_slower_of_moving_and_computing() -> None:
    assert CEILINGS.bandwidth == pytest.approx(1e11)
    assert CEILINGS.floor_s(10**9, 0) == pytest.approx(10e-3)
    assert CEILINGS.floor_s(10**9, 2 * 10**10) == pytest.approx(20e-3)


def measured(seconds: float = 1.1e-3, num_bytes: int = 10**8, flops: int = 0, **others: float) -> Measured:
    times = {OP: timing(seconds)} | {name: timing(other) for name, other in others.items()}
    return Measured("op", "shape", num_bytes, flops, error=1e-4, times=times)


def test_figures_follow_from_times() -> None:
    each = measured(2e-3, flops=10**9)
    assert each.bytes_per_s() == pytest.approx(5e10)
    assert each.flops_per_s() == pytest.approx(5e11)
    assert each.share_of_roofline(CEILINGS) == pytest.approx(0.5)
    assert each.share_of_copy(CEILINGS) == pytest.approx(0.5)
    small = measured(40e-6, num_bytes=1_000_000)
    assert small.share_of_roofline(CEILINGS) == pytest.approx(0.25)
    assert small.share_of_copy(CEILINGS) == pytest.approx(0.5)
    assert small.flops_per_s() is None


@pytest.mark.parametrize(
    ("each", "verdict"),
    [
        (measured(1e-3 / 0.86), Verdict.HOLDS),
        (measured(1e-3 / 0.84), Verdict.BELOW),
        (measured(1e-3, num_bytes=31_000_000), Verdict.HOLDS),  # too small for the bar
        (measured(4e-3, flops=3 * 10**9), Verdict.HOLDS),  # bound by arithmetic, not by memory
        (measured(compile=1.08e-3), Verdict.HOLDS),  # slower by less than measurements differ
        (measured(compile=1.0e-3), Verdict.BELOW),
        (measured(eager=0.5e-3), Verdict.HOLDS),
    ],
)
def test_the_bars(each: Measured, verdict: Verdict) -> None:
    assert each.verdict(CEILINGS) is verdict


def test_spread_and_quantiles() -> None:
    times = quantiles([0.5, 3, 1, 2, 1, 1, 1, 1, 1, 100, 0.1])
    assert (times.low_s, times.median_s, times.high_s) == (0.5, 1, 3)
    assert times.spread == 2.5
    assert quantiles([7.0]) == Timing(7.0, 7.0, 7.0)


@pytest.mark.parametrize(("num_bytes", "count"), [(1, 256), (10_000_000, 150), (400_000_000, 4), (10**10, 2)])
def test_a_repeat_goes_through_more_than_a_cache_holds(num_bytes: int, count: int) -> None:
    assert num_sets(num_bytes) == count


def report() -> Report:
    slow = measured(2e-3, eager=3e-3, compile=2.4e-3, liger=4e-3)
    failed = Measured("norm", "1 x 1", 10, 0, problem="norm 1 x 1: relative error nan, at most 0.1", is_wrong=True)
    machine = {"gpu": "Fake 1000", "torch": "2.0", "triton": "3.0"}
    return Report("2026-11-22T10:00:00+00:00", machine, CEILINGS, [slow, failed], ["late 1", "late 2"])


def test_the_json_holds_figures_and_circumstances() -> None:
    written = json.loads(json.dumps(to_json(report())))
    assert written["machine"]["gpu"] == "Fake 1000"
    assert written["when"].startswith("2026-11-22")
    assert written["ceilings"]["bandwidth"] == pytest.approx(1e11)
    assert [point["how"] for point in written["ceilings"]["copies"]] == ["cuda", "triton", "t"]
    first, second = written["cases"]
    assert first["times"][OP] == pytest.approx({"median_s": 2e-3, "low_s": 1.8e-3, "high_s": 2.4e-3})
    assert first["times_as_long"] == pytest.approx({EAGER: 1.5, COMPILED: 1.2, "liger": 2.0})
    assert (first["share_of_copy"], first["verdict"]) == (pytest.approx(0.5), "below")
    assert (second["verdict"], second["bytes_per_s"]) == ("wrong", None)
    assert written["left_out"] == ["late 1", "late 2"]


def test_the_table_shows_what_was_wrong() -> None:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(table(report()))
    rows = [" ".join(row.replace("│", " ").split()) for row in capture.get().splitlines()]
    row = "op shape 2000.00 us 30% 50 GB/s 50% 50% 1.50x 1.20x liger 2.00x below the bar"
    assert row in rows
    assert "norm 1 x 1 - - - - - - - - WRONG" in rows
    assert "2 cases" in capture.get()


def test_the_markdown_is_a_table_and_names_what_was_wrong() -> None:
    lines = markdown(report()).splitlines()
    assert lines[0] == (
        "Fake 1000, torch 2.0, Triton 3.0, 2026-11-22T10:00:00+00:00. Best copy 100 GB/s, matrix product 1 TFLOP/s"
    )
    assert lines[4] == "| op | shape | 2000.00 us | 30% | 50 GB/s | 50% | 50% | 1.50x | 1.20x | liger 2.00x |"
    assert {text.count("|") for text in lines[2:5]} == {11}
    assert lines[-1] == "WRONG: norm 1 x 1: relative error nan, at most 0.1"


def test_a_line_a_case() -> None:
    good, bad = report().measured
    assert line(bad, CEILINGS) == "WRONG: norm 1 x 1: relative error nan, at most 0.1"
    assert line(good, CEILINGS).startswith("op shape: time 2000.00 us, spread 30%, speed 50 GB/s")
    computed = measured(4e-3, flops=3 * 10**9)
    assert "speed 1 TFLOP/s" in line(computed, CEILINGS)


def test_without_cuda_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--quick"]) == 2
    assert capsys.readouterr().err == "bench: no CUDA device: how fast the kernels are is measured on a GPU\n"


def commanded(monkeypatch: pytest.MonkeyPatch, machine: FakeMachine, *given: Case) -> Callable[..., int]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "CudaMachine", lambda repeats: machine)
    monkeypatch.setattr(command, "all_cases", lambda: list(given))
    return command.main


def test_the_command_writes_files_and_returns_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    main = commanded(monkeypatch, FakeMachine(), case("a"), case("b"))
    files = tmp_path / "deep" / "bench.json", tmp_path / "bench.md"
    assert main(["--quick", "--op", "a", "--json", str(files[0]), "--markdown", str(files[1])]) == 0
    assert [each["op"] for each in json.loads(files[0].read_text())["cases"]] == ["a"]
    assert "| a | 4 x 5 |" in files[1].read_text()


def test_the_command_says_wrong_and_returns_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = commanded(monkeypatch, FakeMachine(), case("a", run=wrong), case("b"))
    assert main(["--quick"]) == 1
    assert "WRONG: a 4 x 5: relative error 0.05" in capsys.readouterr().out


def test_a_slow_kernel_is_no_failure_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commanded(monkeypatch, FakeMachine({double: 1.0}), case("a"))(["--quick"]) == 0
    assert "below the bar" in capsys.readouterr().out


def test_quick_takes_the_first_rank_of_each_operation() -> None:
    given = [case("a", 0), case("a", 1), case("b", 2), case("b", 2), case("b", 3)]
    assert [(each.op, each.rank) for each in command.chosen(given, None, is_quick=True)] == [
        ("a", 0),
        ("b", 2),
        ("b", 2),
    ]
    assert command.chosen(given, "a", is_quick=False) == given[:2]


@pytest.mark.parametrize(
    ("options", "names"),
    [(["--quick"], []), ([], [COMPILED]), (["--full"], [COMPILED, "compile max-autotune"])],
)
def test_compilers_take_their_time_only_when_asked(options: list[str], names: list[str]) -> None:
    assert list(command.compilers(command._parser().parse_args(options))) == names


def test_a_sweep_measures_plans_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = commanded(monkeypatch, FakeMachine(), case("usual"))
    monkeypatch.setattr(command, "all_plans", lambda: [case("plan", shape="1"), case("plan", shape="2")])
    assert main(["--sweep", "--list"]) == 0
    assert capsys.readouterr().out == "plan 1\nplan 2\n"
    monkeypatch.setattr(command, "all_plans", lambda: [case("plan", shape="1"), case("other")])
    assert main(["--sweep", "--list", "--op", "plan"]) == 0
    assert capsys.readouterr().out == "plan 1\n"
    assert main(["--sweep"]) == 0
    assert "usual" not in capsys.readouterr().out
    assert not command.compilers(command._parser().parse_args(["--sweep"]))
    monkeypatch.setattr(command, "all_plans", lambda: [case("usual_plan", shape="1"), case("other")])
    for op in ("usual", "usual_plan"):
        assert main(["--sweep", "--list", "--op", op]) == 0
        assert capsys.readouterr().out == "usual_plan 1\n"


def test_every_plan_is_measured_on_the_shape_that_it_is_for() -> None:
    shapes = {(each.op, each.shape.split(" fp16")[0]) for each in all_plans()}
    assert ("attention_plan", "12 x 4096 to 4096 x 8 heads of 40") in shapes
    assert ("attention_plan", "12 x 256 to 77 x 8 heads of 160") in shapes
    assert ("interleave_plan", "12 x 32x32 x 640") in shapes
    assert ("linear_geglu_plan", "1 x 64x64 x 320") in shapes
    counts = Counter(op for op, _ in shapes)
    assert [counts[f"{op}_plan"] for op in ("attention", "interleave", "linear_geglu")] == [6, 4, 6]


def smallest() -> list[Case]:
    """Of each operation."""
    found: dict[str, Case] = {}
    for each in all_cases():
        if each.op not in found or each.num_bytes < found[each.op].num_bytes:
            found[each.op] = each
    return list(found.values())


@pytest.mark.parametrize("given", smallest(), ids=lambda given: given.op)
def test_every_operation_and_its_plain_form_agree(given: Case) -> None:
    result = measure(given, FakeMachine(), {})
    assert not result.problem
    # cuDNN's attention takes no heads as wide as those of the deepest level
    assert {name for name in result.absent if name != "sdpa cudnn"} == set()


def test_every_kernel_module_is_measured() -> None:
    imported = {
        node.module
        for path in Path(families.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    assert {f"steploom_kernels.{name}" for name in operations.MODULES} <= imported


def test_names_of_cases_are_unique() -> None:
    names = [f"{each.op} {each.shape}" for each in [*all_cases(), *all_plans()]]
    assert len(names) == len(set(names))


def test_the_most_important_shape_of_a_network_operation_comes_first() -> None:
    first = {each.op: each.shape for each in reversed(ordered(all_cases()))}
    assert first["group_norm_silu"] == "12 x 64x64 x 320 fp16"
    assert first["gather_tick"] == "12 rows, 64x64 fp16"


@pytest.mark.parametrize("count", [1, 8192, 8193])  # one value, a whole program, one more
def test_the_copy_copies(count: int, device: torch.device) -> None:
    x = torch.randn(count, device=device)
    out = torch.full_like(x, math.nan)
    assert torch.equal(copy_triton(x, out), x)
    with pytest.raises(ValueError, match="out"):
        copy_triton(x, x.new_empty(count + 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures on a GPU")
def test_a_gpu_is_measured(tmp_path: Path) -> None:
    assert command.main(["--quick", "--op", "silu", "--json", str(tmp_path / "bench.json")]) == 0
    written = json.loads((tmp_path / "bench.json").read_text())
    assert all(0.0 < each["share_of_roofline"] < 1.2 for each in written["cases"])
