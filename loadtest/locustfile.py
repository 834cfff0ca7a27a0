"""Free and pro users over gRPC: `locust -f loadtest/locustfile.py --headless -u 8 -r 4 -t 20s --host 127.0.0.1:8001`.

Nine free users for each pro user, each of which waits for its picture and then thinks for a moment. That is a closed
loop: it shows what so many users feel, not what the service does at a given rate; for that, see `steploom load run`.
"""

from __future__ import annotations

import grpc.experimental.gevent as grpc_gevent
from locust import task

from steploom_loadtest.locust_users import ImageUser

# gRPC's own threads would block the one thread on which all users run
grpc_gevent.init_gevent()


class FreeUser(ImageUser):
    """Few steps, many users."""

    weight = 9

    @task
    def edit(self) -> None:
        """One request."""
        self.ask("free", self.environment.parsed_options.free_steps)


class ProUser(ImageUser):
    """Many steps, few users."""

    weight = 1

    @task
    def edit(self) -> None:
        """One request."""
        self.ask("pro", self.environment.parsed_options.pro_steps)
