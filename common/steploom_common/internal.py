"""Connections between the services: plain on Unix sockets and within a host, elsewhere mutual TLS, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from steploom_common.reread import Reread
from steploom_common.rpc import INTERNAL_OPTIONS
from steploom_common.runtime import is_local
from steploom_common.settings import ConfigError
from steploom_common.tls import channel_credentials, server_credentials
from steploom_common.tls_files import Credentials, InternalConfig, TlsFiles


class Internal:
    """How a service is reached by others, and reaches them.

    Args:
        config: the `[internal]` table.

    Raises:
        ConfigError: a file is wrong; names the setting.
    """

    def __init__(self, config: InternalConfig) -> None:
        self._config = config
        self._files = TlsFiles(("internal.cert", config.cert), ("internal.key", config.key), ("internal.ca", config.ca))
        self._credentials = Reread(self._files.paths, self._files.read) if config.cert else None

    def __repr__(self) -> str:
        return f"Internal({'mutual TLS' if self._credentials else 'plain'})"

    def credentials(self, address: str) -> Credentials | None:
        """What an address is dialled with now; None: nothing, the connection is plain.

        Raises:
            ConfigError: it would be plain, on a network.
        """
        if address.startswith("unix:"):
            return None
        if self._credentials:
            return self._credentials.current()
        if not (is_local(address) or self._config.allow_plain):
            raise ConfigError(
                "internal.cert",
                f"is empty, and {address} is on a network: set internal.cert, key and ca, "
                "or internal.allow_plain = true where nobody else is on that network",
            )
        return None

    def server_credentials(self, address: str) -> grpc.ServerCredentials | None:
        """What an address is bound with; None: nothing.

        Raises:
            ConfigError: it would be plain, on a network.
        """
        return server_credentials(self._files) if self.credentials(address) else None

    def channel(self, address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
        """A channel to another service. It keeps the credentials that it was made with.

        Args:
            address: unix:/path or host:port.
            options: beside those of all internal channels.

        Raises:
            ConfigError: it would be plain, on a network.
        """
        credentials = self.credentials(address)
        every = [*INTERNAL_OPTIONS, *options]
        if credentials is None:
            return grpc.aio.insecure_channel(address, every)
        return grpc.aio.secure_channel(address, channel_credentials(credentials), every)


PLAIN = Internal(InternalConfig())  # where all services are on one host
