"""The file of tokens: what is stored, what is recognised, and what is wrong with it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from steploom_common.errors import Unauthenticated
from steploom_common.settings import ConfigError
from steploom_gateway.quota import Limits
from steploom_gateway.tokens import TokenConfig, add_token, make_token, read_tokens, recognised


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def added(file: Path, name: str, **settings: object) -> str:
    token, hashed = make_token(name)
    add_token(file, name, TokenConfig(hash=hashed, **settings))  # type: ignore[arg-type]
    return token


def test_what_is_written_is_recognised(file: Path) -> None:
    web = added(file, "web", tiers=("free", "pro"), rate=5.0, burst=7, concurrency=4)
    ops = added(file, "ops-2", admin=True)
    tokens = read_tokens(str(file))
    assert [recognised(token, tokens) for token in (web, ops)] == ["web", "ops-2"]
    assert (tokens["web"].tiers, tokens["web"].limits) == (("free", "pro"), Limits(5.0, 7, 4))
    assert (tokens["web"].admin, tokens["ops-2"].admin) == (False, True)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_token_is_long_and_never_the_same(file: Path) -> None:
    tokens = [make_token("web") for _ in range(20)]
    assert all(re.fullmatch(r"steploom_web_[0-9a-f]{64}", token) for token, _ in tokens)
    assert len({token for token, _ in tokens}) == len({hashed.split(":")[1] for _, hashed in tokens}) == 20


def test_neither_token_nor_hash_is_in_what_is_shown_and_no_token_in_the_file(file: Path) -> None:
    token = added(file, "web")
    secret = token.rpartition("_")[2]
    tokens = read_tokens(str(file))
    assert secret not in file.read_text()
    assert tokens["web"].hash.rpartition(":")[2] not in repr(tokens)


def test_what_is_not_known_is_not_recognised(file: Path) -> None:
    token = added(file, "web")
    other = added(file, "other")
    tokens = read_tokens(str(file))
    secret, other_secret = (text.rpartition("_")[2] for text in (token, other))
    foreign = [f"steploom_web_{other_secret}", f"steploom_nobody_{secret}", f"other_web_{secret}", secret]
    bent = [token[:-1], f"{token}0", f"{token}_", f" {token}", token.upper()]
    nonsense = ["", "_", "__", "web", "x" * 100_000]
    for text in (*foreign, *bent, *nonsense):
        with pytest.raises(Unauthenticated) as caught:
            recognised(text, tokens)
        assert str(caught.value) == "the token is not known"


def test_an_empty_file_knows_nobody(file: Path) -> None:
    file.write_text("")
    with pytest.raises(Unauthenticated):
        recognised(make_token("web")[0], read_tokens(str(file)))


def test_a_name_is_taken_once_and_what_was_written_stays(file: Path) -> None:
    file.write_text("# my tokens, without a line end")
    added(file, "web")
    before = file.read_text()
    assert before.startswith("# my tokens, without a line end\n\n[tokens.web]\n")
    with pytest.raises(ConfigError, match="has a token 'web' already"):
        added(file, "web")
    assert file.read_text() == before
    added(file, "other")
    assert file.read_text().startswith(before)
    assert set(read_tokens(str(file))) == {"web", "other"}


def test_tokens_that_are_made_at_the_same_time_are_all_kept(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda index: added(file, f"t{index}"), range(40)))
    known = read_tokens(str(file))
    assert [recognised(token, known) for token in tokens] == [f"t{index}" for index in range(40)]


@pytest.mark.parametrize("name", ["", "a_b", "a b", "-a", "../a", "a.b", "é", "a\n", "x" * 64])
def test_a_name_that_is_none(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a token"):
        make_token(name)


GOOD = f"sha256:{'0' * 32}:{'0' * 64}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no toml", "tokens.toml is not TOML"),
        ("\x00\xff", "tokens.toml is not TOML"),
        ("[token.web]", "tokens.toml: token: unknown key, did you mean 'tokens'"),
        ("tokens = 3", "tokens.toml: tokens: is 3, must be a table"),
        ("[tokens.web]", "tokens.web.hash: must be sha256:SALT:HASH"),
        (f'[tokens.web]\nhash = "{GOOD}"\nrate = -1', "tokens.web.rate: is -1.0, must be at least 0"),
        (f'[tokens.web]\nhash = "{GOOD}"\ntier = "free"', "tokens.web.tier: unknown key, did you mean 'tiers'"),
        (f'[tokens.web]\nhash = "{GOOD}"\nadmin = 1', "tokens.web.admin: is 1, must be true or false"),
        (f'[tokens."a_b"]\nhash = "{GOOD}"', "'a_b' is no name of a token"),
    ],
)
def test_a_wrong_file_is_told_with_the_settings_name(file: Path, text: str, words: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_tokens(str(file))
    assert str(caught.value).startswith("gateway.tokens: ")
    assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"gateway\.tokens"):
        added(file, "more")


@pytest.mark.parametrize("value", ['"steploom_web_5ec7e7"', "5", '["steploom_web_5ec7e7"]'])
def test_a_token_in_the_place_of_its_hash_is_not_shown(file: Path, value: str) -> None:
    file.write_text(f"[tokens.web]\nhash = {value}\n")
    with pytest.raises(ConfigError, match=r"tokens.web.hash: must be sha256") as caught:
        read_tokens(str(file))
    assert "5ec7e7" not in str(caught.value)


def test_a_file_that_is_missing_or_open_to_others_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"gateway.tokens: .*tokens.toml cannot be read: No such file"):
        read_tokens(str(file))
    added(file, "web")
    file.chmod(0o644)
    assert read_tokens(str(file))
    for rights in (0o620, 0o602):
        file.chmod(rights)
        with pytest.raises(ConfigError, match="can be written by others than its owner"):
            read_tokens(str(file))


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/tokens.toml cannot be written: No such file"):
        added(tmp_path / "none" / "tokens.toml", "web")
