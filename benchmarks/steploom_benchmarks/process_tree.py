"""A server is all of its processes: what they have used of the CPU, and what they hold of the memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A line of /proc/PID/stat, as far as it is of use here; proc(5)."""

    pid: int
    parent: int
    session: int
    cpu_ticks: int  # user and system, its own and that of children that have ended and were waited for


@dataclass(frozen=True)
class Usage:
    """Of a tree at one moment."""

    cpu_s: float  # since it began
    memory_mb: float  # proportional set size: a page that several share counts once
    processes: int


def parse_stat(text: str) -> Process:
    """Raises:
    ValueError: it is no line of /proc/PID/stat.
    """
    head, bracket, tail = text.rpartition(")")  # a name may have brackets and blanks of its own
    fields = tail.split()
    if not bracket or len(fields) < 15:
        raise ValueError(f"no line of /proc/PID/stat: {text!r}")
    return Process(
        pid=int(head.split(" ", 1)[0]),
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu_ticks=sum(map(int, fields[11:15])),  # utime, stime, cutime, cstime
    )


def processes(proc: Path = PROC) -> dict[int, Process]:
    """All that there are, by their ids."""
    found = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError):  # it has ended meanwhile
                process = parse_stat((folder / "stat").read_text())
                found[process.pid] = process
    return found


def tree_of(root: int, among: Mapping[int, Process]) -> set[int]:
    """`root`, what it has started, and what those have; also those of its session whose parents have ended."""
    children: dict[int, list[int]] = {}
    for process in among.values():
        children.setdefault(process.parent, []).append(process.pid)
    waiting = [pid for pid, process in among.items() if pid == root or process.session == root]
    tree: set[int] = set()
    while waiting:
        pid = waiting.pop()
        if pid not in tree:
            tree.add(pid)
            waiting += children.get(pid, [])
    return tree


def usage(root: int, proc: Path = PROC) -> Usage:
    """What the tree below `root` has used and holds."""
    among = processes(proc)
    tree = tree_of(root, among)
    return Usage(
        cpu_s=sum(among[pid].cpu_ticks for pid in tree) / _TICKS_PER_S,
        memory_mb=sum(_memory_kb(proc / str(pid)) for pid in tree) / 1024,
        processes=len(tree),
    )


def _memory_kb(folder: Path) -> int:
    with suppress(OSError):  # it has ended, or is somebody else's
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
