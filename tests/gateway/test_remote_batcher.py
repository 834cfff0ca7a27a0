"""A batcher on another host: reached by certificates, which may change while both run."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest
from certificates import authority, needs_openssl, signed
from gateway_house import eventually, request

from steploom_common.internal import Internal
from steploom_common.settings import ConfigError
from steploom_common.tls_files import InternalConfig
from steploom_gateway.config import GatewayConfig
from steploom_gateway.fake_batcher import FakeBatcher, serving_model
from steploom_gateway.server import Gateway
from steploom_protos.v1 import image_pb2_grpc


@needs_openssl
async def test_certificates_between_gateway_and_batcher_can_change(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    pair = signed(tmp_path, "service", ca)
    internal = Internal(InternalConfig(pair.cert, pair.key, ca.cert))
    batcher = FakeBatcher("127.0.0.1:0", tmp_path, serving_model())
    batcher.credentials = internal.server_credentials(batcher.address)
    await batcher.start()
    batcher.address = f"127.0.0.1:{batcher.port}"
    config = GatewayConfig("127.0.0.1:0", metrics_listen="", batcher=batcher.address, poll_s=0.05)
    gateway = Gateway(config, tmp_path, internal)
    await gateway.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            assert await eventually(lambda: gateway.batcher.is_serving)
            assert (await stub.Edit(request())).model == "fake"
            await batcher.stop()
            assert await eventually(lambda: not gateway.batcher.is_serving)
            new = authority(tmp_path, "new")
            signed(tmp_path, "new-service", new).move_to(pair)
            new.move_to(ca)
            batcher.credentials = internal.server_credentials(batcher.address)
            await batcher.start()
            assert await eventually(lambda: gateway.batcher.is_serving)
            assert (await stub.Edit(request())).model == "fake"
    finally:
        await gateway.close()
        await batcher.stop()


async def test_in_the_clear_over_a_network_is_refused(tmp_path: Path) -> None:
    config = GatewayConfig("127.0.0.1:0", metrics_listen="", batcher="10.0.0.2:9000")
    with pytest.raises(ConfigError, match=r"internal\.cert: is empty, and 10\.0\.0\.2:9000 is on a network"):
        Gateway(config, tmp_path)
