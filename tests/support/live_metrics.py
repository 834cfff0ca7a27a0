"""For tests of metrics and traces: a gateway over a real batcher whose worker computes nothing, and what they show."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
from gateway_house import eventually
from opentelemetry.trace import Tracer
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from steploom_batcher.config import BatcherConfig
from steploom_batcher.fake_worker import fake_ready, flat_costs
from steploom_batcher.fake_worker_service import FakeWorkerService, serve_fake_worker
from steploom_batcher.messages import Memory
from steploom_batcher.server import BatcherServer
from steploom_common.tracing import NO_TRACER
from steploom_gateway.config import GatewayConfig
from steploom_gateway.server import Gateway
from steploom_protos.v1 import image_pb2_grpc

# Of the client library: what they say depends on the platform.
FOREIGN = ("process_", "python_")


@dataclass
class Live:
    """All of it, and a client."""

    gateway: Gateway
    batcher: BatcherServer
    stub: image_pb2_grpc.ImageServiceAsyncStub

    async def scrape(self) -> str:
        """The page that Prometheus reads."""
        return await scrape(self.gateway.metrics_port)


async def scrape(port: int) -> str:
    """The page of the metrics server at a port of this host."""

    def get() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            return bytes(answer.read())

    return (await asyncio.to_thread(get)).decode()


@asynccontextmanager
async def live(folder: Path, tracer: Tracer = NO_TRACER, hosts: Sequence[str] = ()) -> AsyncIterator[Live]:
    """Gateway, batcher and worker on sockets in `folder`, and model hosts that are there."""
    ready = replace(fake_ready(flat_costs(0.001, 0.0005, 0.001)), memory=Memory(1000, 500, 20, 10))
    worker = await serve_fake_worker(f"unix:{folder}/w.sock", FakeWorkerService(ready))
    batcher = BatcherServer(BatcherConfig(), f"unix:{folder}/b.sock", [f"unix:{folder}/w.sock"], tracer=tracer)
    await batcher.start()
    config = GatewayConfig(
        listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", batcher=f"unix:{folder}/b.sock", poll_s=0.05, arena_blocks=4
    )
    gateway = Gateway(config, folder, tracer=tracer, hosts=hosts)
    await gateway.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            assert await eventually(lambda: gateway.batcher.is_serving and (gateway.plain.is_ready or not hosts))
            yield Live(gateway, batcher, image_pb2_grpc.ImageServiceStub(channel))
    finally:
        await gateway.close()
        await batcher.stop()
        await worker.stop(None)


def families(text: str) -> dict[str, Metric]:
    """Our families by the names that a scrape shows: a counter's with its `_total`."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if not name.startswith(FOREIGN) and not name.endswith("_created"):
            found[name] = family
    return found


def rows_of_page(text: str) -> set[str]:
    """What docs/metrics.md must say of a scrape in which every family has a sample."""
    rows = set()
    for name, family in families(text).items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        kind = "untyped" if family.type == "unknown" else family.type
        shown = ", ".join(f"`{label}`" for label in sorted(labels))
        rows.add(f"| `{name}` | {kind} | {shown} | {family.documentation} |")
    return rows


def value(text: str, sample_name: str, **labels: str) -> float:
    """The sum of a name's samples with such labels.

    Raises:
        KeyError: there is none.
    """
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == sample_name and labels.items() <= sample.labels.items()
    ]
    if not found:
        raise KeyError(sample_name, labels)
    return float(sum(found))
