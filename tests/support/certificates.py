"""For tests of TLS: authorities and what they sign, made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the openssl command makes the certificates")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: str
    key: str

    def copy_to(self, folder: Path) -> Pair:
        """The same in another folder."""
        return Pair(str(shutil.copy(self.cert, str(folder))), str(shutil.copy(self.key, str(folder))))

    def spoil_key(self) -> None:
        """The key's file is being written, or so it seems."""
        Path(self.key).write_text("half a key")

    def secret(self) -> str:
        """A line of the key that must be seen nowhere."""
        return Path(self.key).read_text().splitlines()[1]

    def move_to(self, other: Pair) -> None:
        """Takes the place of `other`, each file at once, as tools that renew certificates do it."""
        Path(self.key).replace(other.key)
        Path(self.cert).replace(other.cert)


def client_credentials(ca: Pair, own: Pair | None = None) -> grpc.ChannelCredentials:
    """Of a client that trusts `ca`, and shows a certificate of its own if it has one."""
    paths = (ca.cert, own.key, own.cert) if own else (ca.cert,)
    return grpc.ssl_channel_credentials(*(Path(path).read_bytes() for path in paths))


def authority(folder: Path, name: str = "authority") -> Pair:
    """A certificate that signs others."""
    return _made(folder, name)


def signed(folder: Path, name: str, by: Pair) -> Pair:
    """A certificate for this host."""
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    return _made(
        folder, name, "-CA", by.cert, "-CAkey", by.key, "-addext", "basicConstraints=CA:FALSE", "-addext", names
    )


def _made(folder: Path, name: str, *options: str) -> Pair:
    pair = Pair(str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2")
    subprocess.run(
        [str(OPENSSL), "req", "-x509", *kind, "-keyout", pair.key, "-out", pair.cert, "-subj", f"/CN={name}", *options],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return pair
