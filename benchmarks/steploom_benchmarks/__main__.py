"""`make bench-peers`: measures servers side by side, prints the tables, writes out/bench/peers.md and peers.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from steploom_benchmarks.callers import CallError
from steploom_benchmarks.confinement import confine
from steploom_benchmarks.driving import WrongAnswer
from steploom_benchmarks.environments import Missing, prepare, version_of
from steploom_benchmarks.loads import LOADS
from steploom_benchmarks.measuring import Comparison, Times, compare
from steploom_benchmarks.peers import PEERS, Peer
from steploom_benchmarks.server_process import ServerError, end_in_order
from steploom_benchmarks.tables import as_json, markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 where every server was measured, 1 where one could not be or was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    end_in_order()
    given = _parser().parse_args(arguments)
    peers = [PEERS[name] for name in given.peers or PEERS]
    failures: dict[str, str] = {}
    ready = [peer for peer in peers if _prepared(peer, failures)]
    if given.prepare:
        return _end(failures)
    is_confined = _confined()
    comparisons: list[Comparison] = []
    for name in given.loads or LOADS:
        for peer in ready:
            if peer.needs_confinement and not is_confined:
                failures[peer.name] = "it opens ports on all addresses, and a network namespace is not to be had here"
                continue
            times = Times(given.warm_seconds, given.seconds, given.sweep_seconds)
            try:
                done = compare(peer, LOADS[name], times, not given.no_sweep, lambda text: print(text, file=sys.stderr))
            except (ServerError, WrongAnswer, CallError) as error:
                failures[f"{peer.name}, {name}"] = f"{type(error).__name__}: {error}"
                print(failures[f"{peer.name}, {name}"], file=sys.stderr)
                continue
            comparisons.append(done)
            _write(comparisons, failures, ready, given.out, arguments)  # what is done is kept, whatever comes
    print(_write(comparisons, failures, ready, given.out, arguments))
    return _end(failures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench-peers", description=__doc__)
    parser.add_argument("--peer", dest="peers", action="append", choices=tuple(PEERS), help="repeatable; default: all")
    parser.add_argument("--load", dest="loads", action="append", choices=tuple(LOADS), help="repeatable; default: all")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement; default: 5")
    parser.add_argument("--warm-seconds", type=float, default=1.0, help="before it; default: 1")
    parser.add_argument("--sweep-seconds", type=float, default=1.5, help="of each setting in the sweep; default: 1.5")
    parser.add_argument("--no-sweep", action="store_true", help="take the batching that the load names")
    parser.add_argument("--prepare", action="store_true", help="only make the environments")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of peers.md and peers.json")
    return parser


def _prepared(peer: Peer, failures: dict[str, str]) -> bool:
    try:
        prepare(peer.environment)
    except Missing as error:
        failures[peer.name] = str(error)
        return False
    return True


def _confined() -> bool:
    try:
        confine()
    except OSError as error:
        print(f"no network of its own ({error}): servers run on this machine's loopback", file=sys.stderr)
        return False
    return True


def _write(
    comparisons: Sequence[Comparison],
    failures: dict[str, str],
    peers: Sequence[Peer],
    folder: Path,
    arguments: Sequence[str],
) -> str:
    packages = dict.fromkeys((peer.package, peer.environment) for peer in peers if peer.package)
    versions = [f"{package} {version_of(package, environment)}" for package, environment in packages]
    circumstances = {
        "command": shlex.join(["python", "-m", "steploom_benchmarks", *arguments]),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}",
        "load average as it ended": f"{os.getloadavg()[0]:.1f}",
        "versions": ", ".join(versions),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(comparisons, failures, circumstances)
    (folder / "peers.md").write_text(text)
    (folder / "peers.json").write_text(json.dumps(as_json(comparisons, failures, circumstances), indent=2) + "\n")
    return text


def _end(failures: dict[str, str]) -> int:
    for name, reason in failures.items():
        print(f"bench-peers: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
