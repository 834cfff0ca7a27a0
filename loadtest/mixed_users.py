"""Users each of whom asks for anything: `locust -f loadtest/mixed_users.py --mix free=9,pro=1 --host 127.0.0.1:8001 …`.

What is asked for is drawn anew for each request. `--mix` is as of `steploom load run`.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import grpc.experimental.gevent as grpc_gevent
from locust import events, task

from steploom_batcher.config import TierConfig
from steploom_loadtest.locust_users import ImageUser
from steploom_loadtest.mix import Wishes, WrongOption, read_mix
from steploom_loadtest.traces import RequestClass

# gRPC's own threads would block the one thread on which all users run
grpc_gevent.init_gevent()


@events.init_command_line_parser.add_listener
def _(parser: Any) -> None:
    parser.add_argument("--mix", default="free=9,pro=1", help="TIER=SHARE, TIER:STEPS=SHARE, between commas")


@events.init.add_listener
def _(environment: Any, **_: Any) -> None:
    try:
        classes(environment.parsed_options)
    except WrongOption as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def classes(options: Any) -> tuple[RequestClass, ...]:
    """What is asked for.

    Raises:
        WrongOption: the mix is none.
    """
    tiers = {"free": TierConfig(steps=options.free_steps), "pro": TierConfig(steps=options.pro_steps)}
    return read_mix(options.mix, Wishes(deadline=str(options.deadline)), tiers)


class MixedUser(ImageUser):
    """Now few steps, now many."""

    @task
    def edit(self) -> None:
        """One request."""
        mix = classes(self.environment.parsed_options)
        (kind,) = random.choices(mix, [item.weight for item in mix])
        self.ask(kind.tier, kind.steps)
