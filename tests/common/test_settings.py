"""Settings: read, checked, written, and read again."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steploom_common.settings import (
    ConfigError,
    check,
    from_table,
    read_section,
    read_toml,
    replace,
    section,
    setting,
    to_toml,
)


@dataclass(frozen=True)
class Inner:
    """A nested table."""

    size: int = setting(3, "pixels", at_least=1, at_most=9)
    label: str = setting("", "words")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Outer:
    """One field of each kind."""

    count: int = setting(1, "jobs", at_least=0)
    share: float = setting(0.5, "of the device", above=0, at_most=1)
    is_on: bool = setting(False, "whether")
    mode: str = setting("step", "how", choices=("step", "request"))
    sizes: tuple[int, ...] = setting((1, 2), "rows", at_least=1, at_most=64)
    names: tuple[str, ...] = setting((), "names")
    limit: int | None = setting(None, "at most so many", at_least=1)
    inner: Inner = section(Inner, "one")
    tiers: dict[str, Inner] = section(lambda: {"free": Inner(), "pro": Inner(size=5)}, "by name")

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"count": -1}, "count: is -1, must be at least 0"),
        ({"share": 0.0}, "share: is 0.0, must be above 0 and at most 1"),
        ({"share": 1.5}, "share: is 1.5, must be above 0 and at most 1"),
        ({"share": float("nan")}, "share: is nan, must be above 0 and at most 1"),
        ({"share": float("inf")}, "share: is inf, must be above 0 and at most 1"),
        ({"count": "1"}, "count: is '1', must be a whole number"),
        ({"count": 1.0}, "count: is 1.0, must be a whole number"),
        ({"count": True}, "count: is True, must be a whole number"),
        ({"share": True}, "share: is True, must be a number"),
        ({"share": "x"}, "share: is 'x', must be a number"),
        ({"is_on": 1}, "is_on: is 1, must be true or false"),
        ({"mode": 1}, "mode: is 1, must be a string"),
        ({"mode": "batch"}, "mode: is 'batch', must be one of step, request"),
        ({"sizes": 3}, "sizes: is 3, must be a list"),
        ({"sizes": [1, 65]}, "sizes: is 65, must be at least 1 and at most 64"),
        ({"sizes": [1, "2"]}, "sizes: is '2', must be a whole number"),
        ({"limit": 0}, "limit: is 0, must be at least 1"),
        ({"inner": 4}, "inner: is 4, must be a table"),
        ({"inner": {"size": 10}}, "inner.size: is 10, must be at least 1 and at most 9"),
        ({"inner": {"sise": 1}}, "inner.sise: unknown key, did you mean 'size'; known: size, label"),
        ({"tiers": {"free": {"size": 0}}}, "tiers.free.size: is 0, must be at least 1 and at most 9"),
        ({"tiers": {"free": 1}}, "tiers.free: is 1, must be a table"),
        ({"tiers": []}, "tiers: is [], must be a table"),
        ({"cuont": 1}, "cuont: unknown key, did you mean 'count'; known: count, "),
        ({"zzz": 1}, "zzz: unknown key; known: count, "),
    ],
    ids=str,
)
def test_every_error_names_key_value_and_bound(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as bare:
        from_table(Outer, table, "")
    assert str(bare.value).startswith(message)
    with pytest.raises(ConfigError) as prefixed:
        from_table(Outer, table, "gateway")
    assert str(prefixed.value).startswith(f"gateway.{message}")


def test_whole_numbers_serve_as_numbers() -> None:
    assert isinstance(from_table(Outer, {"share": 1}, "").share, float)


INNERS = st.builds(Inner, size=st.integers(1, 9), label=st.text())
OUTERS = st.builds(
    Outer,
    count=st.integers(0, 2**62),
    share=st.floats(0, 1, exclude_min=True),
    is_on=st.booleans(),
    mode=st.sampled_from(["step", "request"]),
    sizes=st.lists(st.integers(1, 64)).map(tuple),
    names=st.lists(st.text()).map(tuple),
    limit=st.none() | st.integers(1, 100),
    inner=INNERS,
    tiers=st.dictionaries(st.text(), INNERS),
)


@given(OUTERS)
def test_toml_and_back(config: Outer) -> None:
    text = to_toml(config)
    assert from_table(Outer, tomllib.loads(text), "") == config
    nested = tomllib.loads(to_toml(config, "a.b"))
    assert from_table(Outer, nested["a"]["b"], "") == config


def test_toml_explains_itself() -> None:
    text = to_toml(Outer())
    assert "# of the device (above 0 and at most 1)\nshare = 0.5" in text
    assert "# how (step, request)" in text
    assert "# limit = …" in text


def test_defaults_stand_where_nothing_is_said(tmp_path: Path) -> None:
    assert read_section(None, "gateway", Outer) == Outer()
    file = tmp_path / "steploom.toml"
    file.write_text("[batcher]\nsomething = 1\n[gateway]\ncount = 7\n")
    assert read_section(file, "gateway", Outer) == Outer(count=7)
    assert read_section(file, "worker", Outer) == Outer()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[gateway", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"gateway = 3", "gateway: is 3, must be a table"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "steploom.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_section(file, "gateway", Outer)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read: .+") as caught:
            read_toml(path)
        assert caught.value.key == str(path)


def test_replace_leaves_out_what_is_none_and_checks_the_rest() -> None:
    assert replace(Outer(count=4), count=None, is_on=True) == Outer(count=4, is_on=True)
    with pytest.raises(ConfigError):
        replace(Outer(), count=-1)
