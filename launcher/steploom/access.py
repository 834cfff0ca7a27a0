"""How a client proves who it is, and whom it trusts: certificates for TLS, and a bearer token."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import grpc

from steploom_common.tls import channel_credentials
from steploom_common.tls_files import TlsFiles, check_pair

_TOKEN_CHARS = frozenset(map(chr, range(0x21, 0x7F)))  # printable ASCII without the blank: what a header can carry

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Tls:
    """A secure connection. The files are in PEM format."""

    ca: str | os.PathLike[str] | None = None  # authorities that vouch for the service; None: the public ones
    cert: str | os.PathLike[str] | None = None  # this client's own, where the service asks for one
    key: str | os.PathLike[str] | None = None  # of `cert`, without a password

    def credentials(self) -> grpc.ChannelCredentials:
        """What a channel is made with.

        Raises:
            ConfigError: a file cannot be read or is wrong; names it as tls.ca, tls.cert or tls.key.
        """
        ca, cert, key = (os.fspath(path) if path else "" for path in (self.ca, self.cert, self.key))
        check_pair(cert, key, "tls.")
        return channel_credentials(TlsFiles(("tls.cert", cert), ("tls.key", key), ("tls.ca", ca)).read())


@dataclass(frozen=True)
class Access:
    """What the command line knows of both."""

    tls: Tls | None = None  # None: a plain connection
    token: str | None = field(default=None, repr=False)


def authorization(token: str | None) -> Metadata:
    """The metadata of a call that shows a token; none without.

    Raises:
        ValueError: it has characters that no token has. It is not shown.
    """
    if token is None:
        return ()
    if not token or not _TOKEN_CHARS.issuperset(token):
        raise ValueError("the token is empty, or has blanks, line ends or characters outside of ASCII")
    return (("authorization", f"Bearer {token}"),)


def choose_credentials(credentials: grpc.ChannelCredentials | None, tls: Tls | None) -> grpc.ChannelCredentials | None:
    """Those of a channel; None: a plain one.

    Raises:
        ValueError: both are given.
        ConfigError: see `Tls.credentials`.
    """
    if credentials is not None and tls is not None:
        raise ValueError("give credentials or tls, not both")
    return tls.credentials() if tls is not None else credentials
