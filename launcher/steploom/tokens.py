"""`steploom token new`: a bearer token, its hash stored, itself shown once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steploom.exit_codes import CommandError, ExitCode
from steploom_common.settings import ConfigError
from steploom_gateway.tokens import TokenConfig, add_token, make_token


def run_new_token(path: Path | None, name: str, settings: Mapping[str, Any]) -> None:
    """Makes a token and prints it.

    Args:
        path: the gateway's file of tokens; None: not known.
        name: of the token.
        settings: its limits, as the fields of `TokenConfig`.

    Raises:
        CommandError: a limit is out of its bound, or the file cannot take it.
    """
    if path is None:
        raise CommandError("no file of tokens", ExitCode.USAGE, "name it by --file, or set gateway.tokens")
    try:
        token, hashed = make_token(name)
        add_token(path, name, TokenConfig(hash=hashed, **settings))
    except ConfigError as error:
        is_limit = error.key in settings
        words = f"--{error.key}: {error.problem}" if is_limit else error.problem
        raise CommandError(words, ExitCode.USAGE) from None
    print(token)
    print(f"shown this once; {path} holds its hash and its limits", file=sys.stderr)
