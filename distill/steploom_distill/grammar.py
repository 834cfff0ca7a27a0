"""Instructions in English and Korean for every edit, split into those for training and those held out.

A held-out instruction is a sentence that training never shows, made of words that training shows for the same
language. The split depends on the sentence alone, so it is the same everywhere.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from . import phrases
from .edits import EDITS

LANGUAGES = ("en", "ko")
ENDINGS = (" 줘", "줘", " 주세요", "주세요", " 줄래", "")
HELD_OUT_PERCENT = 12


@dataclass(frozen=True)
class Instruction:
    """One sentence, in lower case and without a final stop."""

    text: str
    edit: str
    language: str
    is_held_out: bool


def expand(pattern: str) -> Iterator[str]:
    """All sentences of a pattern with ``(a|b)`` groups; groups do not nest."""
    groups = [part.split("|") for part in re.split(r"[()]", pattern)]
    for choice in itertools.product(*groups):
        yield " ".join("".join(choice).split())


def _patterns(name: str, language: str) -> tuple[str, ...]:
    """The patterns of an edit, with colour and place words filled in."""
    fixed = (phrases.ENGLISH if language == "en" else phrases.KOREAN).get(name)
    if fixed is not None:
        return fixed
    family, _, word = name.partition("-")
    column = LANGUAGES.index(language)
    words, frames = {
        "hair": (phrases.HAIR_WORDS, (phrases.HAIR_EN, phrases.HAIR_KO)),
        "shirt": (phrases.COLOUR_WORDS, (phrases.SHIRT_EN, phrases.SHIRT_KO)),
        "backdrop": (phrases.COLOUR_WORDS, (phrases.BACKDROP_EN, phrases.BACKDROP_KO)),
        "at": (phrases.LANDSCAPE_WORDS, (phrases.LANDSCAPE_EN, phrases.LANDSCAPE_KO)),
    }[family]
    return tuple(frame.format(words[word][column]) for frame in frames[column])


def _korean_surface(sentence: str) -> Iterator[str]:
    """Give the verb its endings and the noun its particle by its last sound."""
    spoken = _particles(sentence)
    if "~" not in spoken:
        yield spoken
        return
    for ending in ENDINGS:
        yield spoken.replace("~", ending)


def _particles(sentence: str) -> str:
    """으로 becomes 로 after a vowel or ㄹ; 을 and 를 follow the sound before them."""
    sentence = re.sub(r"([가-힣])(?:으로|로)(?=\s|$)", lambda m: m[1] + _by_sound(m[1], "으로", "로", True), sentence)
    return re.sub(r"([가-힣])(?:을|를)(?=\s|$)", lambda m: m[1] + _by_sound(m[1], "을", "를", False), sentence)


def _by_sound(syllable: str, closed: str, vowel: str, is_l_vowel: bool) -> str:
    final = (ord(syllable) - 0xAC00) % 28
    return vowel if final == 0 or (is_l_vowel and final == 8) else closed


def _english_surface(sentence: str) -> Iterator[str]:
    yield sentence
    yield f"please {sentence}"
    yield f"{sentence} please"
    if sentence.split()[0] in _VERBS:
        yield f"can you {sentence}"
        yield f"could you {sentence}"


_VERBS = frozenset(
    [
        "add",
        "change",
        "close",
        "color",
        "decorate",
        "delete",
        "draw",
        "dye",
        "give",
        "have",
        "let",
        "make",
        "move",
        "open",
        "paint",
        "place",
        "put",
        "remove",
        "redraw",
        "set",
        "show",
        "shut",
        "sketch",
        "stick",
        "switch",
        "take",
        "transform",
        "turn",
        "use",
        "wake",
    ]
)


def _sentences(name: str, language: str) -> Iterator[str]:
    surface = _english_surface if language == "en" else _korean_surface
    for pattern in _patterns(name, language):
        for sentence in expand(pattern):
            yield from surface(sentence)


@cache
def instructions(name: str, language: str) -> tuple[Instruction, ...]:
    """All instructions for an edit in a language, each once, in a fixed order."""
    texts = dict.fromkeys(_sentences(name, language))
    marked = [(text, zlib.crc32(f"{name}:{text}".encode()) % 100 < HELD_OUT_PERCENT) for text in texts]
    known = {word for text, held in marked if not held for word in text.split()}
    return tuple(
        Instruction(text, name, language, held and all(word in known for word in text.split())) for text, held in marked
    )


def split(is_held_out: bool, language: str | None = None) -> list[Instruction]:
    """The training or the held-out instructions of every edit."""
    chosen = LANGUAGES if language is None else (language,)
    return [
        instruction
        for edit in EDITS
        for code in chosen
        for instruction in instructions(edit.name, code)
        if instruction.is_held_out == is_held_out
    ]


def parse(text: str) -> str | None:
    """The edit's name for a sentence of the grammar, whatever its case, spaces and final punctuation; else None."""
    return _lookup().get(" ".join(text.lower().strip(" .!?").split()))


@cache
def _lookup() -> dict[str, str]:
    return {item.text: item.edit for held in (False, True) for item in split(held)}
