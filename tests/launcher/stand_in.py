"""A service that is only healthy: `stand_in.py JOURNAL NAME --listen ADDR`, with ways to misbehave.

It writes a line to JOURNAL when it starts and when it ends, so that a test sees the order.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from steploom_common.rpc import Shutdown, bind


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    parser.add_argument("name")
    parser.add_argument("--listen", required=True)
    parser.add_argument("--exit", type=int, help="end at once with this code")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--alone", type=int, help="end at once with this code where another of its name is there")
    parser.add_argument("--unready-beside", action="store_true", help="never be SERVING beside another of its name")
    parser.add_argument("--unready", action="store_true", help="never be SERVING")
    return parser.parse_args()


def note(arguments: argparse.Namespace, word: str) -> None:
    with arguments.journal.open("a") as journal:
        journal.write(f"{arguments.name} {word} {os.getpid()}\n")


async def serve(arguments: argparse.Namespace) -> None:
    shutdown = Shutdown()
    shutdown.listen()
    server = grpc.aio.server()
    checks = health.aio.HealthServicer()
    if arguments.unready or (arguments.unready_beside and is_beside(arguments)):
        await checks.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    bind(server, arguments.listen)
    note(arguments, "started")  # before anybody can see that it is ready
    print(f"hello from {arguments.name}", file=sys.stderr)
    await server.start()
    await shutdown.requested.wait()
    note(arguments, "asked")
    if arguments.deaf:
        await asyncio.sleep(3600)
    await server.stop(0)
    note(arguments, "ended")


def is_beside(arguments: argparse.Namespace) -> bool:
    """Another process of this name has been asked to serve, and has not ended."""
    lines = arguments.journal.read_text().splitlines() if arguments.journal.exists() else []
    living = {line.split()[2] for line in lines if line.startswith(f"{arguments.name} started")}
    living -= {line.split()[2] for line in lines if line.startswith(f"{arguments.name} ended")}
    return bool(living - {str(os.getpid())})


def main() -> None:
    arguments = parse()
    if arguments.alone is not None and is_beside(arguments):
        raise SystemExit(arguments.alone)
    if arguments.exit is not None:
        print(f"{arguments.name}: slots: is 0, must be at least 1", file=sys.stderr)
        raise SystemExit(arguments.exit)
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
