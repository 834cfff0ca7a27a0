"""`python -m steploom_engine_worker`: one engine worker.

Exit codes: 0 after an orderly end, 2 for a wrong configuration or model directory, 3 (EXIT_FATAL) when the engine
cannot go on (device lost, out of memory), 4 (EXIT_STUCK) when a thread was stuck in it, and the worker must be started
again, 130 when a second signal has ended it, 1 for anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from functools import partial
from pathlib import Path

from steploom_common.internal import Internal
from steploom_common.log_settings import LogConfig
from steploom_common.logs import set_up
from steploom_common.patience import Overdue
from steploom_common.rpc import BindError, Shutdown
from steploom_common.settings import ConfigError, read_section, replace
from steploom_common.tls_files import InternalConfig
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.errors import EXIT_FATAL, EXIT_STUCK, EngineStuck, ModelError, is_fatal
from steploom_engine_worker.launch import build_engine, check_machine
from steploom_engine_worker.server import WorkerServer
from steploom_engine_worker.worker import Limits

log = logging.getLogger("steploom_engine_worker")


def main() -> None:
    """Entry point."""
    arguments = _parser().parse_args()
    # torch's threads, started later, sleep while they wait: spinning, they take the cores from gateway and batcher, and
    # where those want them too a tick takes ten times as long. They spin for some ten microseconds first, the time
    # between two operations of a tick: waking up costs more than most operations of a row.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    _end(_run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="steploom_engine_worker", description="Runs the model of one device.")
    parser.add_argument("--config", type=Path, help="steploom.toml; its table [worker] is read")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--listen", help="address: unix:/path/worker.sock or host:port")
    what.add_argument(
        "--check", action="store_true", help="say whether this machine has what the engine needs, and end"
    )
    parser.add_argument("--name", default="worker", help="of this worker, in its log")
    parser.add_argument("--engine", help="overrides worker.engine: torch, tensorrt or fake")
    parser.add_argument("--model", help="overrides worker.model: a model directory")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    """Serves to the end; the exit code."""
    try:
        set_up(read_section(arguments.config, "log", LogConfig), arguments.name)
        config = read_section(arguments.config, "worker", WorkerConfig)
        config = replace(config, engine=arguments.engine, model=arguments.model)
        if arguments.check:
            check_machine(config)
            return 0
        internal = Internal(read_section(arguments.config, "internal", InternalConfig))
        return asyncio.run(_serve(config, arguments.listen, internal))
    except Exception as error:
        if isinstance(error, EngineStuck):
            log.critical("the worker is stuck: %s", error)
            return EXIT_STUCK
        if is_fatal(error):  # also where a model could not be read for want of memory
            log.critical("the engine cannot go on: %s", error)
            return EXIT_FATAL
        if isinstance(error, (ConfigError, ModelError, BindError)):
            print(f"error: {error}", file=sys.stderr)
            return 2
        log.critical("the worker ends", exc_info=error)
        return 1


async def _serve(config: WorkerConfig, address: str, internal: Internal) -> int:
    shutdown = Shutdown()
    shutdown.listen()
    limits = Limits(Overdue(config.tick_timeout_s, config.tick_timeout_factor), config.prepare_timeout_s)
    worker_id = f"{os.uname().nodename}-{os.getpid()}"
    server = WorkerServer(address, worker_id, partial(build_engine, config), config.drain_s, internal, limits)
    has_ended = await server.run(shutdown)
    return shutdown.exit_code or (0 if has_ended else 1)


def _end(code: int) -> None:
    """Ends at once: a driving thread inside a library must not be torn down with the interpreter."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
