"""The public port over TLS: who gets in, and what happens when certificates change."""

from __future__ import annotations

import stat
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from certificates import Pair, authority, client_credentials, needs_openssl, signed
from gateway_house import House, opened, request, status_of
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steploom_common.settings import ConfigError
from steploom_common.tls_files import ServerTls
from steploom_gateway.config import GatewayConfig
from steploom_gateway.server import Gateway
from steploom_protos.v1 import image_pb2_grpc

pytestmark = needs_openssl


class Keys:
    """An authority, a gateway's certificate and a client's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = authority(folder)
        self.server = signed(folder, "server", self.ca)
        self.client = signed(folder, "client", self.ca)

    def tls(self, is_mutual: bool) -> ServerTls:
        return ServerTls(self.server.cert, self.server.key, self.ca.cert if is_mutual else "")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    folder = tmp_path / "keys"
    folder.mkdir()
    return Keys(folder)


class Secure:
    """Connects to a house by TLS, a connection a call."""

    def __init__(self, house: House) -> None:
        self.address = f"127.0.0.1:{house.gateway.port}"

    async def edit(self, ca: Pair, own: Pair | None = None) -> Any:
        # no subchannels of other calls: each makes its own handshake
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(self.address, client_credentials(ca, own), options) as channel:
            return await image_pb2_grpc.ImageServiceStub(channel).Edit(request())


async def refused(call: Any) -> None:
    assert (await status_of(call)).code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_lets_in_who_trusts_the_authority(tmp_path: Path, keys: Keys) -> None:
    async with opened(tmp_path, tls=keys.tls(is_mutual=False)) as house:
        client = Secure(house)
        assert (await client.edit(keys.ca)).model == "fake"
        await refused(client.edit(authority(keys.folder, "stranger")))
        await refused(house.stub.Edit(request()))  # a plain connection
        assert len(house.batcher.requests) == 1


async def test_mutual_tls_asks_for_a_certificate_of_the_right_authority(tmp_path: Path, keys: Keys) -> None:
    stranger = signed(keys.folder, "other", authority(keys.folder, "stranger"))
    async with opened(tmp_path, tls=keys.tls(is_mutual=True)) as house:
        client = Secure(house)
        assert (await client.edit(keys.ca, keys.client)).model == "fake"
        await refused(client.edit(keys.ca))
        await refused(client.edit(keys.ca, stranger))
        assert len(house.batcher.requests) == 1


async def test_new_certificates_are_taken_without_a_restart(tmp_path: Path, keys: Keys) -> None:
    async with opened(tmp_path, tls=keys.tls(is_mutual=True)) as house, AsyncExitStack() as stack:
        client = Secure(house)
        old = keys.ca.copy_to(tmp_path)
        open_before = await stack.enter_async_context(
            grpc.aio.secure_channel(client.address, client_credentials(old, keys.client))
        )
        await image_pb2_grpc.ImageServiceStub(open_before).Edit(request())
        new = authority(keys.folder, "new-authority")
        new_client = signed(keys.folder, "new-client", new)
        signed(keys.folder, "new-server", new).move_to(keys.server)
        new.move_to(keys.ca)
        assert (await client.edit(keys.ca, new_client)).model == "fake"
        await refused(client.edit(old, keys.client))  # neither trusts the other any more
        await refused(client.edit(keys.ca, keys.client))
        await image_pb2_grpc.ImageServiceStub(open_before).Edit(request())  # connections that are open stay


async def test_wrong_new_files_leave_the_old_ones_in_use(
    tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path, tls=keys.tls(is_mutual=False)) as house:
        kept = keys.server.copy_to(tmp_path)
        keys.server.spoil_key()
        assert (await Secure(house).edit(keys.ca)).model == "fake"
        assert "gateway.tls.key: " in caplog.text
        assert "stays in use" in caplog.text
        kept.move_to(keys.server)
        assert (await Secure(house).edit(keys.ca)).model == "fake"


@pytest.mark.parametrize("missing", ["cert", "key", "client_ca"])
async def test_a_missing_file_ends_the_start_with_its_settings_name(tmp_path: Path, keys: Keys, missing: str) -> None:
    tls = replace(keys.tls(is_mutual=True), **{missing: str(tmp_path / "none.pem")})
    gateway = Gateway(GatewayConfig("127.0.0.1:0", metrics_listen="", batcher="127.0.0.1:1", tls=tls), tmp_path)
    try:
        with pytest.raises(ConfigError, match=rf"gateway.tls.{missing}: .* cannot be read: No such file"):
            await gateway.start()
    finally:
        await gateway.close()


async def test_the_local_way_in_is_plain_and_for_its_owner_alone(tmp_path: Path, keys: Keys) -> None:
    address = f"unix:{tmp_path}/gateway.sock"
    async with (
        opened(tmp_path, tls=keys.tls(is_mutual=True), local_listen=address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert stat.S_IMODE((tmp_path / "gateway.sock").stat().st_mode) == 0o600


def test_the_local_way_in_is_a_socket() -> None:
    with pytest.raises(ConfigError, match=r"local_listen: is '127.0.0.1:1', must be unix:/path"):
        GatewayConfig(local_listen="127.0.0.1:1")


async def test_no_key_is_shown(tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with opened(tmp_path, tls=keys.tls(is_mutual=True)) as house:
        await Secure(house).edit(keys.ca, keys.client)
        await refused(Secure(house).edit(keys.ca))
        shown = caplog.text + repr(house.gateway) + repr(keys.tls(is_mutual=True))
    assert keys.server.secret() not in shown
    assert "PRIVATE KEY" not in shown
