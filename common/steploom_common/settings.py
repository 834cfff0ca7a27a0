"""Frozen config dataclasses that check themselves and are read from, and written as, TOML tables.

A service's config is a dataclass of `setting()` fields: default, bounds and help text stand in one place, and from it
come the check at start, `steploom config` and the documentation.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A key of the configuration is unknown, of the wrong type, or out of its bound."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


@dataclass(frozen=True)
class Rule:
    """What a setting means and which values it takes."""

    help: str
    at_least: float | None = None  # lower bound, included
    at_most: float | None = None  # upper bound, included
    above: float | None = None  # lower bound, excluded
    choices: tuple[str, ...] = ()  # the values of a string setting; empty: any

    def problem(self, value: Any) -> str | None:
        """The bound that `value` breaks, in words, or None."""
        if self.choices and value not in self.choices:
            return f"is {value!r}, must be one of {', '.join(self.choices)}"
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not isinstance(number, bool) and not self._holds(number):
                return f"is {number!r}, must be {self.bounds()}"
        return None

    def bounds(self) -> str:
        """The bounds in words: 'at least 1 and at most 64'."""
        words = [
            f"{name} {int(bound) if float(bound).is_integer() else bound}"
            for name, bound in (("at least", self.at_least), ("above", self.above), ("at most", self.at_most))
            if bound is not None
        ]
        return " and ".join(words) or "a finite number"

    def _holds(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.at_most is None or number <= self.at_most)
            and (self.above is None or number > self.above)
        )


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its rule. The help text names the unit."""
    return field(default=default, metadata={"rule": Rule(help, at_least, at_most, above, choices)})


def section(factory: Any, help: str) -> Any:
    """A nested table, or a dict of named tables."""
    return field(default_factory=factory, metadata={"section": help})


def check(config: Any) -> None:
    """Holds every setting of `config` against its rule. Call it from `__post_init__`.

    Raises:
        ConfigError: names key, value and bound.
    """
    for item in fields(config):
        rule: Rule | None = item.metadata.get("rule")
        problem = rule.problem(getattr(config, item.name)) if rule else None
        if problem:
            raise ConfigError(item.name, problem)


def from_table(cls: type[Config], table: Mapping[str, Any], prefix: str) -> Config:
    """Builds `cls` from a parsed TOML table; keys that are absent keep their defaults.

    Raises:
        ConfigError: an unknown key, a wrong type, or a bound that is broken; names the key.
    """
    hints = typing.get_type_hints(cls)
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ConfigError(f"{prefix}.{key}" if prefix else key, _unknown(key, known))
    values = {key: _convert(hints[key], value, f"{prefix}.{key}" if prefix else key) for key, value in table.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}.{error.key}" if prefix else error.key, error.problem) from None


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown key{f', did you mean {close[0]!r}' if close else ''}; known: {', '.join(known)}"


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type `hint`: scalars, optional scalars, tuples of numbers, nested tables, dicts of tables."""
    if is_dataclass(hint):
        return from_table(hint, _table(value, key), key)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return {name: _convert(arguments[1], item, f"{key}.{name}") for name, item in _table(value, key).items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(key, f"is {value!r}, must be a list")
        return tuple(_convert(arguments[0], item, key) for item in value)
    if origin in (typing.Union, types.UnionType):
        hint = next(item for item in arguments if item is not type(None))
    return _scalar(hint, value, key)


def _scalar(kind: type, value: Any, key: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(key, f"is {value!r}, must be {names.get(kind, kind.__name__)}")
    return value


def _table(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(key, f"is {value!r}, must be a table")
    return value


def to_toml(config: Any, prefix: str = "") -> str:
    """`config` as commented TOML that `from_table` reads back to an equal object."""
    return "\n".join(_lines(config, prefix)).strip() + "\n"


def _lines(config: Any, prefix: str) -> Iterator[str]:
    nested: list[tuple[str, Any]] = []
    if prefix:
        yield f"[{prefix}]"
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value) or isinstance(value, dict):
            nested.append((item.name, value))
            continue
        rule: Rule = item.metadata["rule"]
        yield f"# {rule.help}{_allowed(rule)}"
        yield f"{'# ' if value is None else ''}{item.name} = {'…' if value is None else _literal(value)}"
    yield ""
    for name, value in nested:
        path = f"{prefix}.{name}" if prefix else name
        if not isinstance(value, dict):
            yield from _lines(value, path)
        elif not value:
            yield f"[{path}]"
            yield ""
        else:
            for key, table in value.items():
                yield from _lines(table, f"{path}.{_key(key)}")


def _allowed(rule: Rule) -> str:
    if rule.choices:
        return f" ({', '.join(rule.choices)})"
    has_bound = any(bound is not None for bound in (rule.at_least, rule.at_most, rule.above))
    return f" ({rule.bounds()})" if has_bound else ""


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_literal(item) for item in value)}]"
    # a JSON scalar is a TOML scalar, but for one control character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    """A key of a TOML table, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _literal(name)


def replace(config: Config, **changes: Any) -> Config:
    """A copy of `config` with the changes that are not None; checked like any other."""
    return dataclasses.replace(config, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[type-var]


def read_section(path: Path | None, name: str, cls: type[Config]) -> Config:
    """The table `name` of a TOML file as `cls`; defaults where there is no file or no such table.

    Raises:
        ConfigError: the file is missing or no TOML, or a key of the table is wrong.
    """
    return from_table(cls, _table(read_toml(path).get(name, {}), name), name)


def read_toml(path: Path | None) -> dict[str, Any]:
    """The tables of a TOML file; empty without a path.

    Raises:
        ConfigError: the file is missing or no TOML.
    """
    if path is None:
        return {}
    import tomllib  # of Python 3.11: what reads no file runs on 3.10, as engines without torch do

    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"is not TOML: {error}") from None
