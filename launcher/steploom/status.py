"""`steploom status`: what is up, queued and running now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steploom.access import Tls
from steploom.channel import DEFAULT_ADDRESS
from steploom.exit_codes import CommandError, ExitCode
from steploom.health import check
from steploom.plain_models import ModelLine, plain_models
from steploom.runtime import RuntimeDir
from steploom_common.rpc import INTERNAL_OPTIONS
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1.batcher_pb2_grpc import BatcherStub

_ANSWER_S = 2.0


@dataclass(frozen=True)
class Snapshot:
    """The answers of gateway and batcher."""

    gateway: str  # address
    gateway_health: str  # of grpc.health.v1, or "unreachable"
    batcher: str  # address
    status: pb.StatusResponse | None  # None: the batcher cannot be reached
    models: Sequence[ModelLine] = ()  # plain ones

    @property
    def is_serving(self) -> bool:
        """True where a request would be taken."""
        return self.gateway_health == "SERVING"


def take_snapshot(runtime: RuntimeDir, gateway: str | None, tls: Tls | None = None) -> Snapshot:
    """Asks the gateway at `gateway`, or that of the runtime folder, and the folder's batcher."""
    services = runtime.read_services()
    probe = gateway or (services.local if services and tls is None else "")
    gateway = gateway or (services.gateway if services else DEFAULT_ADDRESS)
    batcher = services.batcher if services else runtime.address("batcher")
    status = _batcher_status(batcher)
    models = [] if status is None else plain_models(batcher, _ANSWER_S)
    return Snapshot(gateway, check(probe or gateway, tls), batcher, status, models)


def run_status(runtime: RuntimeDir, gateway: str | None, as_json: bool, tls: Tls | None = None) -> None:
    """Prints what is up.

    Raises:
        CommandError: no request would be taken now.
    """
    snapshot = take_snapshot(runtime, gateway, tls)
    if as_json:
        print(json.dumps(as_table(snapshot), indent=2))
    elif snapshot.status is not None:
        _print(snapshot, snapshot.status)
    if not snapshot.is_serving:
        is_down = snapshot.gateway_health == "unreachable"
        hint = "start it with `steploom up`" if is_down else "it may still warm up, or drain; try again soon"
        raise CommandError(
            f"the gateway at {snapshot.gateway} is {snapshot.gateway_health.lower().replace('_', ' ')}",
            ExitCode.UNAVAILABLE,
            hint,
        )


def as_table(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot for scripts."""
    status = snapshot.status
    return {
        "gateway": {"address": snapshot.gateway, "health": snapshot.gateway_health},
        "batcher": {"address": snapshot.batcher, "status": None if status is None else _plain(status)},
        "plain_models": [asdict(model) for model in snapshot.models],
    }


def _plain(status: pb.StatusResponse) -> dict[str, Any]:
    return dict(MessageToDict(status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))


def _batcher_status(address: str) -> pb.StatusResponse | None:
    with grpc.insecure_channel(address, INTERNAL_OPTIONS) as channel:
        try:
            return BatcherStub(channel).Status(pb.StatusRequest(), timeout=_ANSWER_S)
        except grpc.RpcError:
            return None


def _print(snapshot: Snapshot, status: pb.StatusResponse) -> None:
    console = Console()
    models = [models_table(snapshot.models)] if snapshot.models else []
    for table in (_services(snapshot, status), *models, _tiers(status), _counters(status)):
        console.print(table)
        console.print()


def _services(snapshot: Snapshot, status: pb.StatusResponse) -> Table:
    table = Table("service", "state", "slots", "in flight", "engine", "address", box=None, pad_edge=False)
    table.add_row("gateway", snapshot.gateway_health.lower().replace("_", " "), "", "", "", snapshot.gateway)
    state = "draining" if status.is_draining else "up"
    table.add_row("batcher", state, "", "", f"policy {status.policy}", snapshot.batcher)
    for worker in status.workers:
        table.add_row(
            "worker",
            worker_state(worker),
            f"{worker.slots_used}/{worker.slots}",
            str(worker.ticks_in_flight),
            worker.engine,
            worker.address,
        )
    return table


def worker_state(worker: pb.StatusResponse.WorkerStatus) -> str:
    """Whether it is up, or about to leave, and while it still prepares how far it is."""
    if not worker.is_up:
        return f"down: {worker.last_error or 'not reached yet'}"
    if worker.is_leaving:
        return "leaving"
    done, total = worker.progress.done, worker.progress.total
    return f"up, {done} of {total} forms recorded" if done < total else "up"


def models_table(models: Sequence[ModelLine]) -> Table:
    """Plain models: what they are, and why they are not ready."""
    table = Table("plain model", "version", "state", "reason", box=None, pad_edge=False)
    for model in models:
        table.add_row(*(Text(word) for word in (model.name, model.version, model.state, model.reason)))
    return table


def _tiers(status: pb.StatusResponse) -> Table:
    table = Table("tier", "queued", "at most", "running", box=None, pad_edge=False)
    for tier in status.tiers:
        table.add_row(tier.name, str(tier.queued), str(tier.max_queued), str(tier.running))
    return table


def _counters(status: pb.StatusResponse) -> Table:
    refused = ", ".join(f"{cause} {count}" for cause, count in sorted(status.refused.items()))
    model = status.model
    rows = {
        "model": f"{model.name}, {model.width}x{model.height}" if status.HasField("model") else "not known yet",
        "adapters": ", ".join(adapter.name for adapter in model.adapters) or "none",
        "rows per tick": f"{status.mean_rows_per_tick:.2f}",
        "ticks": str(status.ticks),
        "finished": str(status.finished),
        "failed": str(status.failed),
        "cancelled": str(status.cancelled),
        "expired": str(status.expired),
        "refused": refused or "0",
    }
    table = Table("since start", "", box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
