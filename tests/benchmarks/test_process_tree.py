"""CPU time and memory of a server's processes, whoever started them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steploom_benchmarks.process_tree import Process, parse_stat, tree_of, usage

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"
# A child that burns and waits, and a grandchild that has burnt and ended; the parent has done nothing itself.
FAMILY = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN.format(seconds=0.2)!r}])
child = subprocess.Popen(
    [sys.executable, "-c", {BURN.format(seconds=0.3)!r} + "print('done', flush=True); import sys; sys.stdin.read()"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
)
child.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_line_of_proc_is_read_whatever_the_process_is_called() -> None:
    line = "42 (a) b (c) R 7 42 41 0 -1 4194304 1 2 3 4 10 20 300 4000 20 0 1 0 123 456"
    assert parse_stat(line) == Process(pid=42, parent=7, session=41, cpu_ticks=4330)


@pytest.mark.parametrize("text", ["", "42 (x) R 7", "no bracket 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"])
def test_another_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no line of /proc"):
        parse_stat(text)


def test_a_tree_has_grandchildren_and_orphans_of_its_session_and_nobody_else() -> None:
    there = [
        Process(1, 0, 1, 0),
        Process(10, 1, 10, 0),  # the root
        Process(11, 10, 10, 0),
        Process(12, 11, 12, 0),  # a grandchild with a session of its own
        Process(13, 1, 10, 0),  # whose parent has ended
        Process(14, 13, 14, 0),  # started by that one
        Process(20, 1, 20, 0),
    ]
    assert tree_of(10, {process.pid: process for process in there}) == {10, 11, 12, 13, 14}


def test_the_cpu_time_of_a_tree_has_children_that_run_and_those_that_have_ended(
    family: subprocess.Popen[bytes],
) -> None:
    used = usage(family.pid)
    assert used.processes == 2
    assert used.cpu_s >= 0.45  # 0.2 and 0.3 s, counted in ticks of 10 ms
    assert used.memory_mb > 5  # two interpreters


def test_what_has_ended_counts_as_nothing(tmp_path: Path) -> None:
    assert usage(42, tmp_path).cpu_s == 0
