"""`python -m steploom_engine_worker.plain`: one model host.

Exit codes: 0 after an orderly end, 2 for a wrong configuration or a repository that is no folder, 3 (EXIT_FATAL) when
a device is lost and the host must be started again, 130 when a second signal has ended it, 1 for anything else. A model
that cannot be loaded ends nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from steploom_common.internal import Internal
from steploom_common.log_settings import LogConfig
from steploom_common.logs import set_up
from steploom_common.rpc import BindError, Shutdown
from steploom_common.settings import ConfigError, read_section, replace
from steploom_common.tls_files import InternalConfig
from steploom_engine_worker.errors import EXIT_FATAL, is_fatal
from steploom_engine_worker.plain.config import HostConfig
from steploom_engine_worker.plain.program import FORCE_WEIGHTS_ONLY
from steploom_engine_worker.plain.server import HostServer

log = logging.getLogger("steploom_engine_worker.plain")


def main() -> None:
    """Entry point."""
    arguments = _parser().parse_args()
    # as in the engine worker: torch's threads sleep while they wait, and take no core from other services
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ[FORCE_WEIGHTS_ONLY] = "1"  # torch's own reader of programs uses torch.load too
    # A model that computes in Python keeps the interpreter for so long from those who wait for it, each time that they
    # want it: the answers of other models pass through it several times. Of Python's 5 ms they took twice as long.
    sys.setswitchinterval(0.001)
    _end(_run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steploom_engine_worker.plain", description="Serves the models of one model repository."
    )
    parser.add_argument("--config", type=Path, help="steploom.toml; its tables [log] and [internal] are read")
    parser.add_argument("--name", default="models", help="of this host, in its log")
    parser.add_argument("--repository", required=True, help="folder of the models; what is in it is run as code")
    parser.add_argument("--address", required=True, help="where to listen: unix:/path/models.sock or host:port")
    parser.add_argument("--load", action="append", metavar="NAME", help="a model to load at the start; else all")
    parser.add_argument("--threads", type=int, help="CPU threads of one call of a torch program; 0: torch's choice")
    parser.add_argument("--drain-s", type=float, help="seconds for batches that have come to end after SIGTERM")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    """Serves to the end; the exit code."""
    try:
        set_up(read_section(arguments.config, "log", LogConfig), arguments.name)
        config = replace(
            HostConfig(),
            repository=arguments.repository,
            load=tuple(arguments.load) if arguments.load else None,
            threads=arguments.threads,
            drain_s=arguments.drain_s,
        )
        if config.threads:
            os.environ["OMP_NUM_THREADS"] = str(config.threads)  # read when torch is first imported
        internal = Internal(read_section(arguments.config, "internal", InternalConfig))
        return asyncio.run(_serve(config, arguments.address, internal))
    except Exception as error:
        if isinstance(error, (ConfigError, BindError, NotADirectoryError)):
            print(f"error: {error}", file=sys.stderr)
            return 2
        if is_fatal(error):
            log.critical("a device is lost: %s", error)
            return EXIT_FATAL
        log.critical("the host ends", exc_info=error)
        return 1


async def _serve(config: HostConfig, address: str, internal: Internal) -> int:
    shutdown = Shutdown()
    shutdown.listen()
    await HostServer(address, f"{os.uname().nodename}-{os.getpid()}", config, internal).run(shutdown)
    return shutdown.exit_code


def _end(code: int) -> None:
    """Ends at once: threads of models, which may hang, must not be torn down with the interpreter."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
