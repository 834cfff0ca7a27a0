"""Where services find each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from steploom_common.runtime import runtime_path, socket_address


@pytest.mark.parametrize(
    ("configured", "environment", "expected"),
    [
        ("/run/x", {"XDG_RUNTIME_DIR": "/run/user/5"}, "/run/x"),
        ("", {"XDG_RUNTIME_DIR": "/run/user/5"}, "/run/user/5/steploom"),
        ("", {"XDG_RUNTIME_DIR": ""}, "/tmp/steploom-5"),
        ("", {}, "/tmp/steploom-5"),
    ],
)
def test_the_first_that_is_known(configured: str, environment: dict[str, str], expected: str) -> None:
    assert runtime_path(configured, environment, 5) == Path(expected)


def test_sockets_are_named_after_services() -> None:
    assert socket_address(Path("/run/x"), "batcher") == "unix:/run/x/batcher.sock"
