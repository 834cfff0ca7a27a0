"""More users until the knee: `locust -f loadtest/locustfile.py,loadtest/shapes/ramp.py --ramp-users 4 …`."""

from __future__ import annotations

from typing import Any

from locust import LoadTestShape, events

from steploom_loadtest.shapes import Ramp


@events.init_command_line_parser.add_listener
def _(parser: Any) -> None:
    group = parser.add_argument_group("Ramp")
    group.add_argument("--ramp-users", type=int, default=4, help="users that come at each step; default: 4")
    group.add_argument("--ramp-seconds", type=float, default=15.0, help="seconds of a step, at least 10; default: 15")
    group.add_argument("--ramp-most", type=int, default=200, help="users at which it ends at the latest; default: 200")
    group.add_argument(
        "--ramp-factor",
        type=float,
        default=3.0,
        help="knee: p95 is so many times what it first was; default: 3",
    )


class RampShape(LoadTestShape):  # type: ignore[misc]  # locust has no types
    """Tells locust how many users there are now."""

    def __init__(self) -> None:
        super().__init__()
        self._ramp: Ramp | None = None

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many come or go a second."""
        given = self.runner.environment.parsed_options
        if self._ramp is None:
            self._ramp = Ramp(given.ramp_users, given.ramp_seconds, given.ramp_most, given.ramp_factor)
            self.runner.stats.use_response_times_cache = True  # of entries that are made from now on: all
        entries = self.runner.stats.entries.values()
        p95_ms = {entry.name: entry.get_current_response_time_percentile(0.95) for entry in entries}  # of ten seconds
        users = self._ramp.users(self.get_run_time(), p95_ms)
        if users is not None:
            return users, float(given.ramp_users)
        knee = self._ramp.knee
        print(f"knee: {knee} users" if knee is not None else f"no knee up to {given.ramp_most} users", flush=True)
        return None
