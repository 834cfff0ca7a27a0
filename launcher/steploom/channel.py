"""How clients reach a service."""

from __future__ import annotations

from typing import Any

DEFAULT_ADDRESS = "127.0.0.1:8001"

# A raw picture in and out is larger than gRPC's default of 4 MiB.
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def local(address: str) -> str:
    """`address` as a client on this host dials it: a wildcard host becomes loopback."""
    host, _, port = address.rpartition(":")
    wildcards = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "*": "127.0.0.1"}
    return f"{wildcards.get(host, host)}:{port}"
