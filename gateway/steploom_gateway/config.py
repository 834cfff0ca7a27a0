"""The gateway's settings: the `[gateway]` table of steploom.toml."""

from __future__ import annotations

from dataclasses import dataclass

from steploom_common.settings import ConfigError, check, section, setting
from steploom_common.tls_files import ServerTls

_ROOM_FOR_FIELDS = 2**20  # bytes of a message beside its picture


@dataclass(frozen=True)
class GatewayConfig:
    """The front door: where it listens, what it takes, how long it waits."""

    listen: str = setting("127.0.0.1:8001", "host:port of the public gRPC service")
    local_listen: str = setting(
        "",
        "unix:/path of a second way in, plain and for this user alone, as for health checks where the first wants "
        "certificates; empty: none",
    )
    metrics_listen: str = setting("127.0.0.1:8002", "host:port of the Prometheus metrics; empty: none")
    batcher: str = setting("", "address of the batcher; empty: its socket in the runtime folder")
    supervisor: str = setting("", "path of the supervisor's socket, as `steploom up` gives it; empty: there is none")
    max_image_bytes: int = setting(
        16 * 2**20, "bytes of a picture as it is sent, encoded or raw", at_least=1024, at_most=2**30
    )
    max_image_side: int = setting(4096, "pixels of a picture's longer side", at_least=1, at_most=16_383)
    max_image_pixels: int = setting(
        16 * 2**20, "pixels of a picture, height times width", at_least=1, at_most=16_383 * 16_383
    )
    max_instruction_chars: int = setting(500, "characters of an instruction", at_least=1, at_most=10_000)
    max_steps: int = setting(100, "denoising steps of a request", at_least=1, at_most=1000)
    max_guidance_scale: float = setting(30.0, "pull towards the instruction", at_least=1, at_most=100)
    max_image_guidance_scale: float = setting(10.0, "pull towards the input picture", at_least=1, at_most=100)
    preview_side: int = setting(128, "pixels of a preview's longer side at most", at_least=8, at_most=1024)
    max_calls: int = setting(1024, "edits that are open at once; more are refused", at_least=1, at_most=1_000_000)
    tokens: str = setting(
        "", "file of the bearer tokens that callers must show, read again when it changes; empty: anybody may call"
    )
    max_calls_per_token: int = setting(
        0,
        "requests that one token may have open, where its entry says nothing else; 0: no bound",
        at_least=0,
        at_most=1_000_000,
    )
    retry_window_s: float = setting(
        60.0,
        "seconds for which a picture is kept for a retry of its request, under the same request id; 0: no request "
        "joins another, nor gets its picture",
        at_least=0,
        at_most=3600,
    )
    retry_bytes: int = setting(
        64 * 2**20,
        "bytes of all pictures that are kept for retries, the oldest make way; 0: retries join what runs, and no more",
        at_least=0,
        at_most=2**36,
    )
    arena_blocks: int = setting(
        64, "pictures in shared memory at once; further ones travel in messages; 0: all do", at_least=0, at_most=65_536
    )
    settle_s: float = setting(
        5.0,
        "seconds for which shared memory is kept from use where the batcher does not say that it is free",
        at_least=0,
        at_most=600,
    )
    codec_threads: int = setting(2, "threads that decode and encode pictures", at_least=1, at_most=256)
    unread_s: float = setting(
        120.0,
        "seconds for which a caller may leave an answer of a stream unread; then its call ends with CANCELLED",
        above=0,
        at_most=86_400,
    )
    poll_s: float = setting(1.0, "seconds between looks at the batcher", above=0, at_most=60)
    shared_memory_regions: int = setting(
        0,
        "regions of shared memory that clients of the Open Inference Protocol may register; their memory is read and "
        "written as this user; 0: none",
        at_least=0,
        at_most=4096,
    )
    remote_log_settings: bool = setting(False, "whether clients may change what this gateway logs, by LogSettings")
    remote_model_control: bool = setting(
        False, "whether clients may load and unload models, by RepositoryModelLoad and RepositoryModelUnload"
    )
    drain_s: float = setting(30.0, "seconds for open edits to end once asked to stop", at_least=0, at_most=3600)
    tls: ServerTls = section(ServerTls, "TLS of the public gRPC service; files are read again when they change")

    def __post_init__(self) -> None:
        check(self)
        _check_port("listen", self.listen)
        if self.local_listen and not self.local_listen.startswith("unix:"):
            raise ConfigError("local_listen", f"is {self.local_listen!r}, must be unix:/path")
        if self.metrics_listen:
            _check_port("metrics_listen", self.metrics_listen)

    @property
    def max_message_bytes(self) -> int:
        """Bytes of a request; a larger one is refused by its length before it is read."""
        return self.max_image_bytes + _ROOM_FOR_FIELDS


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of host:port, with the brackets of an IPv6 host removed.

    Raises:
        ValueError: it has no port, or one above 65535.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_port(key: str, address: str) -> None:
    if key == "listen" and address.startswith("unix:"):
        return
    try:
        host_and_port(address)
    except ValueError:
        raise ConfigError(key, f"is {address!r}, must be host:port with a port of at most 65535") from None
