"""A spike of users: `locust -f loadtest/locustfile.py,loadtest/shapes/spike.py --spike-users 40 …`."""

from __future__ import annotations

from typing import Any

from locust import LoadTestShape, events

from steploom_loadtest.shapes import Spike


@events.init_command_line_parser.add_listener
def _(parser: Any) -> None:
    group = parser.add_argument_group("Spike")
    group.add_argument("--spike-base", type=int, default=4, help="users before and after; default: 4")
    group.add_argument("--spike-users", type=int, default=40, help="users in the spike; default: 40")
    group.add_argument("--spike-at", type=float, default=20.0, help="seconds until it comes; default: 20")
    group.add_argument("--spike-seconds", type=float, default=10.0, help="seconds that it lasts; default: 10")
    group.add_argument("--shape-seconds", type=float, default=60.0, help="seconds of the whole; default: 60")


class SpikeShape(LoadTestShape):  # type: ignore[misc]  # locust has no types
    """Tells locust how many users there are now."""

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many come or go a second."""
        given = self.runner.environment.parsed_options
        spike = Spike(
            given.spike_base, given.spike_users, given.spike_at, given.spike_seconds, given.shape_seconds
        )  # fmt: skip
        users = spike.users(self.get_run_time())
        return None if users is None else (users, float(max(1, spike.peak)))
