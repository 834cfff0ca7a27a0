"""SDK and command line with certificates and a token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Pair, authority, needs_openssl, signed
from PIL import Image

from steploom import Client, Tls, Unavailable, aio
from steploom.access import Access, authorization
from steploom.cli import main
from steploom.config import SteploomConfig
from steploom.exit_codes import ExitCode
from steploom.health import check
from steploom.plan import plan
from steploom.runtime import RuntimeDir
from steploom.testing import FakeGateway, serving
from steploom_common import errors
from steploom_common.settings import ConfigError
from steploom_common.tls import server_credentials
from steploom_common.tls_files import ServerTls, TlsFiles
from steploom_gateway.config import GatewayConfig

PICTURE = b"not looked at by the fake"
TOKEN = "steploom_web_0123456789abcdef"


@pytest.fixture
def ca(tmp_path: Path) -> Pair:
    return authority(tmp_path)


@contextmanager
def secured(folder: Path, ca: Pair, is_mutual: bool = False) -> Iterator[FakeGateway]:
    pair = signed(folder, "server", ca)
    files = TlsFiles(("cert", pair.cert), ("key", pair.key), ("client_ca", ca.cert if is_mutual else ""))
    with serving(FakeGateway(), server_credentials(files)) as gateway:
        yield gateway


@needs_openssl
async def test_both_clients_speak_tls_and_show_their_token(tmp_path: Path, ca: Pair) -> None:
    own = signed(tmp_path, "client", ca)
    with secured(tmp_path, ca, is_mutual=True) as gateway:
        tls = Tls(ca.cert, own.cert, own.key)
        with Client(gateway.address, tls=tls, token=TOKEN) as client:
            assert client.edit(PICTURE, "x").model == "fake"
            assert list(client.edit_stream(PICTURE, "x"))
            assert TOKEN not in repr(client)
        async with aio.Client(gateway.address, tls=tls, token=TOKEN) as other:
            assert (await other.edit(PICTURE, "x")).model == "fake"
            assert [event async for event in other.edit_stream(PICTURE, "x")]
            assert TOKEN not in repr(other)
        assert gateway.authorizations == [f"Bearer {TOKEN}"] * 4
        with Client(gateway.address, tls=Tls(ca.cert)) as stranger, pytest.raises(Unavailable):
            stranger.edit(PICTURE, "x")
        assert check(gateway.address, tls) == "SERVING"
        assert check(gateway.address) == "unreachable"


def test_without_a_token_none_is_shown() -> None:
    with serving(FakeGateway()) as gateway, Client(gateway.address) as client:
        client.edit(PICTURE, "x")
        assert gateway.authorizations == [""]


@pytest.mark.parametrize("token", ["", "two words", "line\n", "é"])
def test_what_is_no_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="the token is empty, or has blanks") as caught:
        Client(token=token)
    assert not token or token not in str(caught.value)


def test_access_does_not_show_the_token() -> None:
    assert TOKEN not in repr(Access(token=TOKEN))
    assert authorization(TOKEN) == (("authorization", f"Bearer {TOKEN}"),)


def test_a_wrong_file_of_the_sdk_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls.ca: .*none.pem cannot be read: No such file"):
        Client(tls=Tls(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"tls.key: is empty, must be set where cert is"):
        aio.Client(tls=Tls(cert="a.pem"))


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; its exit code and what it said."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("STEPLOOM_RUNTIME_DIR", "/proc/nonexistent")

    def invoke(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["steploom", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return invoke


@pytest.fixture
def edit(run: Run, tmp_path: Path) -> Run:
    picture = tmp_path / "portrait.png"
    Image.new("RGB", (16, 16)).save(picture)
    return lambda *arguments: run("edit", picture, "x", "-o", tmp_path / "out.png", *arguments)


@needs_openssl
def test_edit_and_status_take_certificates_as_options(edit: Run, run: Run, tmp_path: Path, ca: Pair) -> None:
    own = signed(tmp_path, "client", ca)
    with secured(tmp_path, ca, is_mutual=True) as gateway:
        options = ("--address", gateway.address, "--tls-ca", ca.cert, "--tls-cert", own.cert, "--tls-key", own.key)
        assert edit(*options)[0] == ExitCode.OK
        assert run("status", *options)[0] == ExitCode.OK
        assert run("status", "--address", gateway.address)[0] == ExitCode.UNAVAILABLE


@needs_openssl
def test_edit_takes_all_from_the_environment(
    edit: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ca: Pair
) -> None:
    own = signed(tmp_path, "client", ca)
    with secured(tmp_path, ca, is_mutual=True) as gateway:
        for name, value in (("ADDRESS", gateway.address), ("TLS_CA", ca.cert), ("TLS_CERT", own.cert)):
            monkeypatch.setenv(f"STEPLOOM_{name}", value)
        monkeypatch.setenv("STEPLOOM_TLS_KEY", own.key)
        monkeypatch.setenv("STEPLOOM_TOKEN", TOKEN)
        code, said = edit()
        assert code == ExitCode.OK, said
        assert gateway.authorizations == [f"Bearer {TOKEN}"]
        assert TOKEN not in said


@needs_openssl
def test_an_untrusted_gateway_is_told_apart_from_one_that_is_down(edit: Run, tmp_path: Path, ca: Pair) -> None:
    with secured(tmp_path, ca) as gateway:
        code, said = edit("--address", gateway.address, "--tls-ca", authority(tmp_path, "stranger").cert)
        assert code == ExitCode.UNAVAILABLE
        assert "its certificate is not trusted" in said
        assert "--tls-ca" in said
    with serving(FakeGateway()) as plain:
        assert "no secure connection" in edit("--address", plain.address, "--tls")[1]


def test_a_token_comes_from_a_file(edit: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("STEPLOOM_TOKEN", "another")
    with serving(FakeGateway()) as gateway:
        assert edit("--address", gateway.address, "--token-file", tmp_path / "token")[0] == ExitCode.OK
        assert gateway.authorizations == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tls-ca", "none.pem"), "--tls-ca: none.pem cannot be read: No such file"),
        (("--tls-cert", "a.pem"), "--tls-key: is empty, must be set where cert is"),
        (("--token-file", "none"), "--token-file: none cannot be read: No such file"),
    ],
)
def test_a_wrong_file_is_named_by_its_option(edit: Run, arguments: tuple[str, ...], words: str) -> None:
    code, said = edit(*arguments)
    assert code == ExitCode.USAGE
    assert words in said
    assert "Traceback" not in said


def test_a_file_that_holds_no_token_is_refused(edit: Run, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a secret\nof two lines")
    code, said = edit("--token-file", tmp_path / "token")
    assert code == ExitCode.USAGE
    assert "secret" not in said


def test_the_gateway_gets_a_plain_socket_beside_a_port_that_wants_certificates(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path)
    usual = plan(SteploomConfig(), runtime)
    assert usual.groups[0][0].probe == usual.gateway
    assert usual.services(1).local == ""
    gateway = GatewayConfig(tls=ServerTls("a.pem", "a.key"))
    planned = plan(SteploomConfig(gateway=gateway), runtime)
    spec = planned.groups[0][0]
    address = runtime.address("gateway")
    assert (spec.probe, spec.address, planned.services(1).local) == (address, gateway.listen, address)
    assert spec.command[-2:] == ("--local-listen", address)
    own = replace(gateway, local_listen="unix:/run/gateway.sock")
    assert plan(SteploomConfig(gateway=own), runtime).groups[0][0].probe == "unix:/run/gateway.sock"


def test_what_runs_here_is_reached_by_its_socket(edit: Run, tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path / "run")
    runtime.create()
    with serving(FakeGateway()) as gateway:
        secured_gateway = GatewayConfig(listen="127.0.0.1:1", tls=ServerTls("a.pem", "a.key"))
        services = plan(SteploomConfig(gateway=secured_gateway), runtime).services(1)
        runtime.write_services(replace(services, local=gateway.address))
        assert edit("--runtime-dir", runtime.path)[0] == ExitCode.OK
        assert edit("--runtime-dir", runtime.path, "--tls")[0] == ExitCode.UNAVAILABLE


@pytest.mark.parametrize("error", [errors.Unauthenticated("no token"), errors.PermissionDenied("not that tier")])
def test_who_may_not_is_told_so(edit: Run, error: errors.SteploomError) -> None:
    with serving(FakeGateway(error)) as gateway:
        code, said = edit("--address", gateway.address)
    assert code == ExitCode.USAGE
    assert str(error) in said
    assert ("--token-file" in said) is isinstance(error, errors.Unauthenticated)
