"""Names and colours of everything a scene can show. Indices into these lists are the scene's attribute values."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class Subject(IntEnum):
    PERSON = 0
    CAT = 1


class HairStyle(IntEnum):
    SHORT = 0
    BOB = 1
    LONG = 2
    CURLY = 3
    PIGTAILS = 4
    SPIKY = 5


class Face(IntEnum):
    ROUND = 0
    OVAL = 1
    SQUARE = 2


class Mouth(IntEnum):
    NEUTRAL = 0
    SMILE = 1
    LAUGH = 2


class Hat(IntEnum):
    NONE = 0
    BEANIE = 1
    COWBOY = 2


class Outfit(IntEnum):
    PLAIN = 0
    STRIPES = 1
    HOODIE = 2


class Backdrop(IntEnum):
    SOLID = 0
    GRADIENT = 1
    DOTS = 2
    STRIPES = 3
    RAYS = 4
    DESERT = 5
    BEACH = 6
    NIGHT = 7
    FOREST = 8


class Style(IntEnum):
    PLAIN = 0
    ILLUSTRATION = 1
    WESTERN = 2


# A backdrop below this index is painted in the scene's backdrop colour; the others are fixed landscapes.
FIRST_LANDSCAPE = int(Backdrop.DESERT)

SKINS = {
    "porcelain": "ffe0cc",
    "peach": "f8c9a4",
    "tan": "dda173",
    "brown": "a86e45",
    "deep": "74472c",
}
HAIRS = {
    "black": "2a2630",
    "brown": "6f4428",
    "blond": "f4cd5e",
    "red": "c8432c",
    "white": "e9e9ee",
    "pink": "f58ab8",
    "blue": "3f7fe0",
    "green": "45ad62",
    "purple": "8c55cc",
}
IRISES = {"brown": "6b4023", "blue": "3f8fd8", "green": "4a9a58", "grey": "7c8794"}
SHIRTS = {
    "red": "d94343",
    "blue": "3d6fd1",
    "green": "3f9e5f",
    "yellow": "f2c53d",
    "black": "35343d",
    "white": "f1f0ec",
    "purple": "8658c4",
    "orange": "ee8a3a",
}
BACKDROPS = {
    "blue": "8cc7f2",
    "pink": "f9b9cf",
    "green": "a5dcab",
    "yellow": "fbe08a",
    "purple": "c3aeee",
    "white": "f5f4f1",
    "grey": "a9b3be",
    "orange": "f9b27c",
}


def rgb(code: str) -> tuple[float, float, float]:
    """``"ffcc00"`` as three floats in 0..1."""
    red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def table(colours: dict[str, str]) -> Tensor:
    """A palette as a float tensor ``[n, 3]`` in 0..1."""
    return torch.tensor([rgb(code) for code in colours.values()])


def index(colours: dict[str, str], name: str) -> int:
    """The attribute value of a colour's name."""
    return list(colours).index(name)
