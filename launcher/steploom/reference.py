"""docs/configuration.md, written from the settings themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from steploom.config import SteploomConfig
from steploom_common.settings import Rule

_HEAD = """# Configuration

Everything tunable stands in one TOML file that each service reads its own table of:

    steploom config > steploom.toml          # the defaults, commented
    steploom config --check -c steploom.toml # errors name key, value and bound
    steploom up -c steploom.toml

A key that is left out keeps its default. A table of tiers replaces the default tiers.

This page is generated from the settings by `make docs`.
"""


def configuration_page() -> str:
    """Every key with its default, its bounds and its meaning, as Markdown."""
    return "\n".join([_HEAD, *_tables(SteploomConfig(), "", "")]).rstrip() + "\n"


def _tables(config: Any, path: str, help: str) -> Iterator[str]:
    nested = [item for item in fields(config) if "rule" not in item.metadata]
    settings = [item for item in fields(config) if "rule" in item.metadata]
    if settings:
        yield f"## `[{path}]`\n\n{help[:1].upper()}{help[1:]}.\n"
        yield "| key | default | allowed | meaning |\n|---|---|---|---|"
        yield from (_row(item, getattr(config, item.name)) for item in settings)
        yield ""
    for item in nested:
        value = getattr(config, item.name)
        name = f"{path}.{item.name}" if path else item.name
        if is_dataclass(value):
            yield from _tables(value, name, item.metadata["section"])
        for key, table in value.items() if isinstance(value, dict) else ():
            yield from _tables(table, f"{name}.{key}", item.metadata["section"])


def _row(item: Field[Any], value: Any) -> str:
    rule: Rule = item.metadata["rule"]
    has_bound = any(bound is not None for bound in (rule.at_least, rule.at_most, rule.above))
    allowed = ", ".join(rule.choices) or (rule.bounds() if has_bound else "")
    default = "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"
    return f"| `{item.name}` | {default} | {allowed} | {rule.help} |"
