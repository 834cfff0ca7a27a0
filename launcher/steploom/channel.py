"""How both clients open a connection."""

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
