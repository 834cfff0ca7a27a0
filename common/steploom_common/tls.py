"""gRPC's credentials from certificates in files. A server takes changed files at its next handshake."""

from __future__ import annotations

import grpc

from steploom_common.reread import Reread
from steploom_common.tls_files import Credentials, ServerTls, TlsFiles


def server_tls(config: ServerTls, table: str) -> grpc.ServerCredentials | None:
    """What a server's port is bound with; None where it is plain.

    Args:
        config: its settings.
        table: that they stand in, for messages.

    Raises:
        ConfigError: a file is wrong; names the setting.
    """
    if not config:
        return None
    return server_credentials(
        TlsFiles((f"{table}.cert", config.cert), (f"{table}.key", config.key), (f"{table}.client_ca", config.client_ca))
    )


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Of a server that shows a certificate, and asks each client for one where authorities are named.

    Connections that are open stay as they are when the files change.

    Raises:
        ConfigError: a file is wrong now.
    """
    reread = Reread(files.paths, files.read)
    last = reread.current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal last
        latest = reread.current()
        if latest == last:
            return None
        last = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(last),
        fetch,  # type: ignore[arg-type]  # None keeps what there is, which the stubs do not know
        require_client_authentication=bool(last.ca),
    )


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """Of a client: the authorities that it trusts (none named: those that gRPC brings), and its own certificate."""
    return grpc.ssl_channel_credentials(credentials.ca or None, credentials.key or None, credentials.cert or None)


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(credentials.key, credentials.cert)], credentials.ca or None)
