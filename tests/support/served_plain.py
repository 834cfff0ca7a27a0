"""A gateway, a batcher and a fake model host in one process: plain models all the way through real sockets."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from gateway_house import eventually

from steploom_batcher.config import BatcherConfig
from steploom_batcher.plain.config import PlainConfig
from steploom_batcher.plain.fake_host import FakeHost, identity_config
from steploom_batcher.server import BatcherServer
from steploom_common.internal import PLAIN
from steploom_common.tracing import NO_TRACER
from steploom_gateway.config import GatewayConfig
from steploom_gateway.server import Gateway
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import grpc_service_pb2_grpc
from steploom_protos.inference.model_config_pb2 import ModelConfig


@dataclass
class PlainHouse:
    """The services, and a client's channel."""

    gateway: Gateway
    batcher: BatcherServer
    hosts: list[FakeHost]
    folder: Path
    channel: grpc.aio.Channel

    @property
    def host(self) -> FakeHost:
        return self.hosts[0]

    @property
    def stub(self) -> grpc_service_pb2_grpc.GRPCInferenceServiceAsyncStub:
        return grpc_service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    @property
    def num_requests(self) -> int:
        """That the queue has, wherever it is."""
        return max(self.gateway.plain_runner.num_open, self.batcher.plain.driver.num_requests)

    async def is_clean(self) -> bool:
        """Whether no request is left anywhere; waits a moment for it."""
        return await eventually(
            lambda: (
                self.gateway.plain.num_open == 0
                and self.gateway.plain_runner.num_open == 0
                and self.batcher.plain.driver.num_requests == 0
            )
        )

    async def restart_host(self) -> None:
        """The first host comes back after `host.stop()`."""
        await self.host.start(host_address(self.folder, 0))


def host_address(folder: Path, index: int) -> str:
    return f"unix:{folder}/host-{index}.sock"


@asynccontextmanager
async def opened_plain(
    folder: Path,
    configs: Sequence[ModelConfig] | None = None,
    num_hosts: int = 1,
    instances: int = 1,
    plain: PlainConfig | None = None,
    repository: Path | None = None,
    arena_dir: Path | None = None,
    **settings: Any,
) -> AsyncIterator[PlainHouse]:
    """A house of plain models alone; there are no engine workers. With a repository, its host is a real one."""
    hosts = [FakeHost([identity_config()] if configs is None else configs, instances) for _ in range(num_hosts)]
    for index, host in enumerate(hosts):
        await host.start(host_address(folder, index))
    address, table = f"unix:{folder}/batcher.sock", plain or PlainConfig()
    addresses = [host_address(folder, index) for index in range(num_hosts)]
    process = None
    if repository is not None:
        addresses.append(f"unix:{folder}/models.sock")
        command = ("-P", "-m", "steploom_engine_worker.plain", "--repository", str(repository))
        process = await asyncio.create_subprocess_exec(sys.executable, *command, "--address", addresses[-1])
    batcher = BatcherServer(BatcherConfig(), address, [], PLAIN, NO_TRACER, table, addresses)
    await batcher.start()
    config = GatewayConfig(
        **{"listen": "127.0.0.1:0", "metrics_listen": "", "batcher": address, "poll_s": 0.05, **settings}
    )
    gateway = Gateway(config, arena_dir or folder, plain=table, hosts=addresses)
    await gateway.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", [("grpc.max_receive_message_length", 2**28)])
    try:
        assert await eventually(lambda: gateway.plain.is_ready and gateway.plain.is_alone)
        yield PlainHouse(gateway, batcher, hosts, folder, channel)
    finally:
        await channel.close()
        await gateway.close()
        await batcher.stop()
        for host in hosts:
            await host.stop()
        if process is not None:
            process.terminate()
            await process.wait()


def identity_request(data: bytes = b"abc", rows: int = 1, model_name: str = "identity", **fields: Any) -> Any:
    """A good request of the identity model: `data` in so many rows."""
    request = pb.ModelInferRequest(model_name=model_name, **fields)
    request.inputs.add(name="INPUT0", datatype="UINT8", shape=[rows, len(data) // rows])
    request.raw_input_contents.append(data)
    return request
