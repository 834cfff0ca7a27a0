"""Bearer tokens: the file that lists them, each as a salted hash with its limits, and how one is made and recognised.

A token is `steploom_NAME_SECRET`, the secret 256 random bits. Nobody can try those out, however fast the hash: so it is
SHA-256, once, and not scrypt, which would let strangers keep the gateway busy with tokens that are wrong. The salt is
there so that two files, or two entries, cannot be compared. The name in the token finds its entry without trying all.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steploom_common.errors import Unauthenticated
from steploom_common.settings import ConfigError, check, from_table, section, setting, to_toml
from steploom_gateway.quota import Limits

SETTING = "gateway.tokens"

_PREFIX = "steploom"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")  # no underscore: it parts the token
_HASH = re.compile(r"sha256:([0-9a-f]{32}):([0-9a-f]{64})")
_SECRET_BYTES = 32
_SALT_BYTES = 16
_WRONG_HASH = "must be sha256:SALT:HASH, as `steploom token new` writes it"
_NOBODY = (
    f"sha256:{'0' * 32}:{'0' * 64}"  # that no token has: looking for an unknown name takes as long as for a known one
)


@dataclass(frozen=True, repr=False)
class TokenConfig:
    """A token's entry in the file."""

    hash: str = setting("", "sha256:SALT:HASH, as `steploom token new` writes it")
    tiers: tuple[str, ...] = setting(
        (), "classes of service that it may ask for, the first where a request names none; empty: all"
    )
    rate: float = setting(0.0, "requests a second in the long run; 0: no bound", at_least=0, at_most=1_000_000)
    burst: int = setting(
        0, "requests at once after a pause; 0: those of a second, one at least", at_least=0, at_most=1_000_000
    )
    concurrency: int = setting(
        0, "requests that are open at once; 0: gateway.max_calls_per_token", at_least=0, at_most=1_000_000
    )
    admin: bool = setting(False, "may load and unload models, and change what the service does")

    def __post_init__(self) -> None:
        check(self)
        if not _HASH.fullmatch(self.hash):
            raise ConfigError("hash", _WRONG_HASH)

    def __repr__(self) -> str:
        return f"TokenConfig(tiers={self.tiers}, {self.limits}, admin={self.admin})"

    @property
    def limits(self) -> Limits:
        """The bounds of its quota."""
        return Limits(self.rate, self.burst, self.concurrency)


@dataclass(frozen=True)
class TokensFile:
    """The whole file."""

    tokens: dict[str, TokenConfig] = section(dict, "who may call, by name")


Tokens = Mapping[str, TokenConfig]


def read_tokens(path: str) -> Tokens:
    """The entries of a file, by name.

    Raises:
        ConfigError: the file cannot be read, others may write it, or an entry is wrong.
    """
    try:
        with Path(path).open("rb") as file:
            rights = os.fstat(file.fileno()).st_mode
            text = file.read()
    except OSError as error:
        raise ConfigError(SETTING, f"{path} cannot be read: {error.strerror}") from None
    if rights & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(SETTING, f"{path} can be written by others than its owner: take that right away (chmod go-w)")
    return _parsed(path, text)


def _parsed(path: str, text: bytes) -> Tokens:
    try:
        tokens = from_table(TokensFile, tomllib.loads(text.decode()), "").tokens
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(SETTING, f"{path} is not TOML: {error}") from None
    except ConfigError as error:
        raise ConfigError(SETTING, f"{path}: {_without_value(error)}") from None
    for name in tokens:
        check_name(name, f"{path}: ")
    return tokens


def _without_value(error: ConfigError) -> str:
    """Of a hash not even what is wrong is shown: somebody may have put the token itself in its place."""
    return f"{error.key}: {_WRONG_HASH}" if error.key.endswith(".hash") else str(error)


def check_name(name: str, where: str = "") -> None:
    """Raises:
    ConfigError: it is no name of a token.
    """
    if not _NAME.fullmatch(name):
        problem = f"{where}{name!r} is no name of a token: 1 to 63 of A-Z, a-z, 0-9 and -, a letter or digit first"
        raise ConfigError(SETTING, problem)


def recognised(token: str, tokens: Tokens) -> str:
    """The name of a token.

    Raises:
        Unauthenticated: there is none like it. How long that takes tells nothing of those that there are.
    """
    prefix, _, rest = token.partition("_")
    name, _, _ = rest.partition("_")
    entry = tokens.get(name)
    matched = _HASH.fullmatch(entry.hash if entry else _NOBODY)
    assert matched
    is_right = hmac.compare_digest(_digest(bytes.fromhex(matched[1]), token), matched[2])
    if not (is_right and entry and prefix == _PREFIX):
        raise Unauthenticated("the token is not known")
    return name


def make_token(name: str) -> tuple[str, str]:
    """A new token, and the hash to store.

    Raises:
        ConfigError: see `check_name`.
    """
    check_name(name)
    token = f"{_PREFIX}_{name}_{secrets.token_hex(_SECRET_BYTES)}"
    salt = secrets.token_bytes(_SALT_BYTES)
    return token, f"sha256:{salt.hex()}:{_digest(salt, token)}"


def add_token(path: Path, name: str, entry: TokenConfig) -> None:
    """Puts an entry at the end of a file, which is made where there is none; what is in it stays as it is written.

    Raises:
        ConfigError: the file is wrong, cannot be written, or has the name already.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go of when it is closed
            before = file.read()
            if name in _parsed(str(path), before):
                raise ConfigError(SETTING, f"{path} has a token {name!r} already; choose another name")
            gap = b"" if not before else b"\n" if before.endswith(b"\n") else b"\n\n"
            file.write(gap + to_toml(entry, f"tokens.{name}").encode())
    except OSError as error:
        raise ConfigError(SETTING, f"{path} cannot be written: {error.strerror}") from None


def _digest(salt: bytes, token: str) -> str:
    return hashlib.sha256(salt + token.encode()).hexdigest()
