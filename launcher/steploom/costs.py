"""`steploom costs`: what ticks of the workers of a running batcher take, as a table to simulate with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import grpc

from steploom.exit_codes import CommandError, ExitCode
from steploom_common.rpc import INTERNAL_OPTIONS
from steploom_loadtest.cost_tables import CostTable
from steploom_loadtest.measured_costs import table_of
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1.batcher_pb2_grpc import BatcherStub

_ANSWER_S = 5.0


def run_costs(batcher: str, out: Path | None) -> None:
    """Prints the table, or writes it to a file.

    Raises:
        CommandError: nobody answers, no worker is up, or the file cannot be written.
    """
    table = ask_costs(batcher)
    if out is None:
        print(table.to_json(), end="")
        return
    try:
        out.write_text(table.to_json(), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--out: cannot write {out}: {error.strerror}", ExitCode.USAGE) from None
    print(out)


def ask_costs(batcher: str) -> CostTable:
    """The table of the workers that are up.

    Raises:
        CommandError: nobody answers, or no worker is up.
    """
    status = _status(batcher)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    table = table_of(status, f"measured by the workers of a running batcher, model {status.model.name}, {when}")
    if table is None:
        raise CommandError("no worker is up", ExitCode.UNAVAILABLE, "`steploom status` tells what they do")
    return table


def _status(address: str) -> pb.StatusResponse:
    with grpc.insecure_channel(address, INTERNAL_OPTIONS) as channel:
        try:
            return BatcherStub(channel).Status(pb.StatusRequest(), timeout=_ANSWER_S)
        except grpc.RpcError:
            problem = f"no batcher answers at {address}"
            raise CommandError(problem, ExitCode.UNAVAILABLE, "start one with `steploom up`") from None
