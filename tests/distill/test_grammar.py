"""Every edit can be asked for in both languages; held-out sentences are new but made of known words."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPTokenizer

from steploom_distill import grammar
from steploom_distill.config import ModelConfig
from steploom_distill.edits import EDITS, Edit
from steploom_distill.text import PhraseTable, encode, train_tokenizer

SHIPPED = Path(__file__).parents[2] / "models" / "avatar-edit" / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    config = ModelConfig()
    return train_tokenizer(config.vocabulary, config.text_tokens)


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("make the hair blond", "hair-blond"),
        ("금발로 만들어 줘", "hair-blond"),
        ("put on sunglasses", "sunglasses-on"),
        ("썬글라스를 씌워 줘", "sunglasses-on"),
        ("선글라스를 씌워 줘", "sunglasses-on"),
        ("close the eyes", "eyes-close"),
        ("눈을 감겨 줘", "eyes-close"),
        ("turn it into a western", "western"),
        ("서부 영화로 만들어 줘", "western"),
        ("add a flower", "flower-on"),
        ("꽃 추가", "flower-on"),
        ("draw it as an illustration", "illustration"),
        ("일러스트화", "illustration"),
        ("turn the cat into a person", "humanise"),
        ("인간화", "humanise"),
        ("  Please  CLOSE the eyes! ", "eyes-close"),
        ("모자를 벗겨 주세요.", "hat-off"),
        ("make me a sandwich", None),
    ],
)
def test_parse_finds_the_edit(text: str, edit: str | None) -> None:
    assert grammar.parse(text) == edit


def test_held_out_sentences_are_new_and_made_of_known_words() -> None:
    for language in grammar.LANGUAGES:
        train = {item.text for item in grammar.split(False, language)}
        held_out = {item.text for item in grammar.split(True, language)}
        assert train.isdisjoint(held_out)
        known = {word for text in train for word in text.split()}
        assert all(word in known for text in held_out for word in text.split())


@pytest.mark.parametrize("language", grammar.LANGUAGES)
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_every_edit_has_many_sentences_on_both_sides(edit: Edit, language: str) -> None:
    items = grammar.instructions(edit.name, language)
    assert sum(not item.is_held_out for item in items) >= 50
    assert sum(item.is_held_out for item in items) >= 5


def test_no_sentence_asks_for_two_edits() -> None:
    asked: dict[str, str] = {}
    for item in grammar.split(False) + grammar.split(True):
        assert asked.setdefault(item.text, item.edit) == item.edit, item.text


@pytest.mark.parametrize(
    ("pattern", "particle"),
    [
        ("금발으로 바꿔", "금발로"),
        ("갈색으로 바꿔", "갈색으로"),
        ("핑크으로 바꿔", "핑크로"),
        ("모자을 씌워", "모자를"),
        ("꽃를 달아", "꽃을"),
    ],
)
def test_particles_follow_the_sound_before_them(pattern: str, particle: str) -> None:
    assert grammar._particles(pattern).split()[0] == particle


def test_patterns_expand_to_every_choice() -> None:
    assert list(grammar.expand("(a|b) c (d|)")) == ["a c d", "a c", "b c d", "b c"]


def test_the_tokenizer_round_trips_both_languages(tokenizer: CLIPTokenizer) -> None:
    for item in random.Random(0).sample(grammar.split(True), 300):
        ids = tokenizer(item.text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ' ", "'").replace(" '", "'") == item.text
        assert len(ids) < tokenizer.model_max_length


def test_any_text_can_be_encoded(tokenizer: CLIPTokenizer) -> None:
    text = "뷁 日本 zebra ß"
    assert tokenizer.unk_token_id not in tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = encode(tokenizer, [text, "x" * 500])
    assert ids.shape == (2, tokenizer.model_max_length)
    assert ids[1, -1] == tokenizer.eos_token_id


def test_case_does_not_matter(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer("Close THE eyes")["input_ids"] == tokenizer("close the eyes")["input_ids"]


def test_the_shipped_tokenizer_is_the_one_the_grammar_gives(tokenizer: CLIPTokenizer) -> None:
    texts = [item.text for item in random.Random(1).sample(grammar.split(False), 300)]
    for shipped in (CLIPTokenizer.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)):
        assert shipped(texts)["input_ids"] == tokenizer(texts)["input_ids"]
        assert shipped.model_max_length == tokenizer.model_max_length


def test_the_phrase_table_draws_sentences_of_the_edit(
    tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = grammar.instructions
    monkeypatch.setattr(grammar, "instructions", lambda name, language: every(name, language)[::30])
    table = PhraseTable.build(tokenizer, torch.device("cpu"))
    edits = torch.arange(len(EDITS)).repeat(4)
    for edit, ids in zip(edits.tolist(), table.draw(edits), strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True).replace(" '", "'").replace("' ", "'")
        assert grammar.parse(text) == EDITS[edit].name
