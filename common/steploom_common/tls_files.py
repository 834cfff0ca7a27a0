"""Certificates and keys as PEM files: the settings that name them, and reading that tells which is wrong and why."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from steploom_common.settings import ConfigError, check, setting


@dataclass(frozen=True)
class ServerTls:
    """TLS of a port; mutual where the clients' authorities are named."""

    cert: str = setting("", "PEM file of the certificate and of those that vouch for it; empty: connections are plain")
    key: str = setting("", "PEM file of the certificate's private key, without a password")
    client_ca: str = setting(
        "", "PEM file of the authorities of which clients must show a certificate; empty: none is asked for"
    )

    def __post_init__(self) -> None:
        check(self)
        check_pair(self.cert, self.key)
        if self.client_ca and not self.cert:
            raise ConfigError("client_ca", "is of no use without cert and key: connections are plain")

    def __bool__(self) -> bool:
        return bool(self.cert)


@dataclass(frozen=True)
class InternalConfig:
    """The `[internal]` table: what gateway, batcher and workers show each other where they are not on one host."""

    cert: str = setting("", "PEM file of this service's certificate, by which it serves and dials; empty: none")
    key: str = setting("", "PEM file of the certificate's private key, without a password")
    ca: str = setting("", "PEM file of the authorities of which the other services must show a certificate")
    allow_plain: bool = setting(
        False, "whether services talk without TLS over a network; right only where nobody else is on it"
    )

    def __post_init__(self) -> None:
        check(self)
        check_pair(self.cert, self.key)
        if bool(self.cert) != bool(self.ca):
            raise ConfigError("ca" if self.cert else "cert", "is empty, must be set: TLS between services is mutual")


def check_pair(cert: str, key: str, prefix: str = "") -> None:
    """Holds that a certificate and its key are named together.

    Raises:
        ConfigError: one is missing; its name stands behind `prefix`.
    """
    if bool(cert) != bool(key):
        missing, there = ("key", "cert") if cert else ("cert", "key")
        raise ConfigError(prefix + missing, f"is empty, must be set where {there} is")


@dataclass(frozen=True)
class Credentials:
    """What the files hold; empty where none is named. None of it is shown."""

    cert: bytes = field(repr=False)
    key: bytes = field(repr=False)
    ca: bytes = field(repr=False)


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files, each beside the name of the setting that it comes from; empty paths: none."""

    cert: tuple[str, str]  # setting, path
    key: tuple[str, str]
    ca: tuple[str, str]

    @property
    def paths(self) -> tuple[str, str, str]:
        """The paths alone."""
        return self.cert[1], self.key[1], self.ca[1]

    def read(self) -> Credentials:
        """All files, which fit together.

        Raises:
            ConfigError: a file cannot be read, is not what its setting asks for, or the key is another certificate's;
                names the setting.
        """
        cert, key, ca = (_content(*named) for named in (self.cert, self.key, self.ca))
        for named, content in ((self.cert, cert), (self.ca, ca)):
            if content:
                _check_certificates(*named, content)
        if key:
            self._check_key(key)
        return Credentials(cert, key, ca)

    def _check_key(self, key: bytes) -> None:
        setting, path = self.key
        if b"ENCRYPTED" in key:  # asked for its password, OpenSSL would wait at the terminal
            raise ConfigError(setting, f"{path} has a password: write the key without one, readable by its owner alone")
        if b"PRIVATE KEY-----" not in key:
            raise ConfigError(setting, f"{path} holds no private key in PEM format")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert[1], path)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                problem = f"{path} is not the key of the certificate in {self.cert[1]}"
            else:
                problem = f"{path} cannot be used with {self.cert[1]}: {error.reason or 'damaged'}"
            raise ConfigError(setting, problem) from None
        except OSError as error:
            raise ConfigError(setting, f"{path} cannot be read: {error.strerror}") from None


def _content(setting: str, path: str) -> bytes:
    if not path:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(setting, f"{path} cannot be read: {error.strerror}") from None


def _check_certificates(setting: str, path: str, content: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii", "ignore"))
    except ssl.SSLError:
        raise ConfigError(setting, f"{path} holds no certificate in PEM format, or a damaged one") from None
