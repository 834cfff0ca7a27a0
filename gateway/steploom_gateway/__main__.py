"""The gateway's process: arguments, environment and signals come in here and nowhere else."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from steploom_batcher.plain.config import PlainConfig
from steploom_common.arena import default_directory
from steploom_common.internal import Internal
from steploom_common.log_settings import LogConfig
from steploom_common.logs import set_up
from steploom_common.rpc import BindError, Shutdown
from steploom_common.runtime import runtime_path, socket_address
from steploom_common.settings import ConfigError, read_section, replace
from steploom_common.tls_files import InternalConfig
from steploom_common.tracing import Provider, finish, provider, tracer_of
from steploom_common.tracing_settings import TracingConfig
from steploom_gateway.config import GatewayConfig
from steploom_gateway.server import Gateway

_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the gateway until a signal; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.captureWarnings(True)  # of damaged pictures
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    runtime = runtime_path("", os.environ, os.getuid())
    try:
        set_up(read_section(options.config, "log", LogConfig), "gateway")
        config = replace(
            read_section(options.config, "gateway", GatewayConfig),
            listen=options.listen,
            metrics_listen=options.metrics_listen,
            local_listen=options.local_listen,
            batcher=options.batcher,
            supervisor=options.supervisor,
        )
        if not config.batcher:
            config = replace(config, batcher=socket_address(runtime, "batcher"))
        plain = read_section(options.config, "plain", PlainConfig)
        hosts = options.host or plain.hosts
        internal = Internal(read_section(options.config, "internal", InternalConfig))
        traces = provider(read_section(options.config, "tracing", TracingConfig), "gateway")
        return asyncio.run(_serve(config, default_directory(runtime), internal, traces, plain, hosts))
    except (ConfigError, BindError) as error:
        print(f"steploom-gateway: {error}", file=sys.stderr)
        return _USAGE_ERROR


async def _serve(
    config: GatewayConfig,
    arena_dir: Path,
    internal: Internal,
    traces: Provider | None,
    plain: PlainConfig,
    hosts: Sequence[str],
) -> int:
    shutdown = Shutdown()
    shutdown.listen()
    gateway = Gateway(config, arena_dir, internal, tracer_of(traces), plain, hosts)
    try:
        await gateway.start()
        await shutdown.requested.wait()
        await gateway.drain(shutdown)
    finally:
        await gateway.close()
        await asyncio.to_thread(finish, traces)
    return shutdown.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m steploom_gateway", description="The front door: the public gRPC API over a batcher."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="steploom.toml; its [gateway] table is read")
    parser.add_argument("--batcher", metavar="ADDR", help="address of the batcher: unix:/path or host:port")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where the public API listens")
    parser.add_argument("--local-listen", metavar="unix:PATH", help="a second way in, plain and for this user alone")
    parser.add_argument("--supervisor", metavar="PATH", help="socket of the supervisor, which replaces workers")
    parser.add_argument("--metrics-listen", metavar="HOST:PORT", help="where Prometheus metrics are shown")
    parser.add_argument("--host", action="append", metavar="ADDR", help="a host of plain models; repeatable")
    return parser


if __name__ == "__main__":
    sys.exit(main())
