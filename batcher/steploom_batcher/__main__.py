"""`python -m steploom_batcher`: reads flags and steploom.toml, serves until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from steploom_batcher.config import BatcherConfig
from steploom_batcher.plain.config import PlainConfig
from steploom_batcher.server import BatcherServer
from steploom_common.internal import Internal
from steploom_common.log_settings import LogConfig
from steploom_common.logs import set_up
from steploom_common.rpc import BindError, Shutdown
from steploom_common.settings import ConfigError, read_section
from steploom_common.tls_files import InternalConfig
from steploom_common.tracing import Provider, finish, provider, tracer_of
from steploom_common.tracing_settings import TracingConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        set_up(read_section(options.config, "log", LogConfig), "batcher")
        config = read_section(options.config, "batcher", BatcherConfig)
        workers = options.worker or config.workers
        plain = read_section(options.config, "plain", PlainConfig)
        hosts = options.host or plain.hosts
        if not (workers or hosts):
            parser.error("no worker: give --worker ADDR or --host ADDR, or batcher.workers or plain.hosts")
        internal = Internal(read_section(options.config, "internal", InternalConfig))
        traces = provider(read_section(options.config, "tracing", TracingConfig), "batcher")
        return asyncio.run(_serve(config, options.listen, workers, internal, traces, plain, hosts))
    except (ConfigError, BindError) as error:
        print(f"steploom_batcher: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="steploom_batcher", description="Decides which rows run in which tick.")
    parser.add_argument("--config", type=Path, help="steploom.toml; without it, defaults")
    parser.add_argument("--listen", required=True, metavar="ADDR", help="host:port or unix:/path to serve on")
    parser.add_argument("--worker", action="append", metavar="ADDR", help="an engine worker's address; repeatable")
    parser.add_argument("--host", action="append", metavar="ADDR", help="a host of plain models; repeatable")
    return parser


async def _serve(
    config: BatcherConfig,
    listen: str,
    workers: Sequence[str],
    internal: Internal,
    traces: Provider | None,
    plain: PlainConfig,
    hosts: Sequence[str],
) -> int:
    shutdown = Shutdown()
    shutdown.listen()
    try:
        server = BatcherServer(config, listen, workers, internal, tracer_of(traces), plain, hosts)
        await server.run(shutdown)
    finally:
        await asyncio.to_thread(finish, traces)
    return shutdown.exit_code


if __name__ == "__main__":
    sys.exit(main())
