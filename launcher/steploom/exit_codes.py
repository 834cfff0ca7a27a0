"""What `steploom` exits with: the one table behind the code, `--help` and the documentation."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    DEADLINE = 4
    EXHAUSTED = 5
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "all went well",
    ExitCode.FAILED: "the request, or a service, failed",
    ExitCode.USAGE: "a wrong argument, setting or file",
    ExitCode.UNAVAILABLE: "the service cannot be reached, or is not ready",
    ExitCode.DEADLINE: "the deadline passed, or cannot be met",
    ExitCode.EXHAUSTED: "refused: queue or slots are full; try again later",
    ExitCode.INTERRUPTED: "interrupted, or ended by a second signal",
}


class CommandError(Exception):
    """Ends a command with a message for a person and an exit code.

    Args:
        message: what is wrong.
        code: what the process exits with.
        hint: what to do next; empty where the message says it.
    """

    def __init__(self, message: str, code: ExitCode, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
