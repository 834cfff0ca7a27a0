"""Days of users, made short: `locust -f loadtest/locustfile.py,loadtest/shapes/diurnal.py --day-seconds 300 …`."""

from __future__ import annotations

from typing import Any

from locust import LoadTestShape, events

from steploom_loadtest.shapes import Day


@events.init_command_line_parser.add_listener
def _(parser: Any) -> None:
    group = parser.add_argument_group("Diurnal")
    group.add_argument("--day-low", type=int, default=2, help="users at midnight; default: 2")
    group.add_argument("--day-high", type=int, default=20, help="users at noon; default: 20")
    group.add_argument("--day-seconds", type=float, default=120.0, help="seconds of a day; default: 120")
    group.add_argument("--days", type=float, default=1.0, help="how many; default: 1")


class DiurnalShape(LoadTestShape):  # type: ignore[misc]  # locust has no types
    """Tells locust how many users there are now."""

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many come or go a second."""
        given = self.runner.environment.parsed_options
        users = Day(given.day_low, given.day_high, given.day_seconds, given.days).users(self.get_run_time())
        return None if users is None else (users, float(max(1, given.day_high)))
