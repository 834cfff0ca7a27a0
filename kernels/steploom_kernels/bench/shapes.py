"""The shapes that the models give their kernels, those that cost most first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steploom_kernels.bench.case import TYPE_NAMES


@dataclass(frozen=True)
class Level:
    """A resolution of a UNet."""

    side: int  # pixels, of a square
    channels: int
    groups: int  # of its normalisations
    is_transformer: bool = True  # attention and feed-forward layers run at this level

    @property
    def tokens(self) -> int:
        """Pixels."""
        return self.side * self.side


@dataclass(frozen=True)
class Place:
    """A level at a number of rows, and when its turn is."""

    level: Level
    rows: int
    rank: int

    def name(self, dtype: torch.dtype = torch.float16) -> str:
        """For people."""
        level = self.level
        return f"{self.rows} x {level.side}x{level.side} x {level.channels} {TYPE_NAMES[dtype]}"


# Stable Diffusion 1.5 and InstructPix2Pix, 512 x 512 pixels.
UNET = (Level(64, 320, 32), Level(32, 640, 32), Level(16, 1280, 32), Level(8, 1280, 32))
# Where a skip connection was joined on: the widest input of a level.
UNET_JOINED = (Level(64, 960, 32), Level(32, 1920, 32), Level(16, 2560, 32), Level(8, 2560, 32))
# Channels of a level and of the skip connection that is joined on, first level first.
UNET_PAIRS = (
    ((640, 320), (320, 320)),
    ((1280, 640), (640, 640), (640, 320)),
    ((1280, 1280), (1280, 640)),
    ((1280, 1280),),
)
# The embedded model, 128 x 128 pixels.
EMBEDDED = (Level(32, 64, 16, is_transformer=False), Level(16, 96, 16), Level(8, 160, 16))
ROWS = (12, 24, 3, 1)  # four jobs of three rows first


def places(*, joined: bool = False, transformers: bool = False) -> Iterator[Place]:
    """All levels at all numbers of rows; with the joined ones, or only those of transformers."""
    for rows in ROWS:
        for index, level in enumerate(UNET):
            yield Place(level, rows, _rank(rows, index))
        if joined:
            yield from (Place(level, rows, 1 + _rank(rows, index)) for index, level in enumerate(UNET_JOINED))
        yield from (Place(level, rows, 4) for level in EMBEDDED if level.is_transformer or not transformers)


def pairs() -> Iterator[tuple[Place, int]]:
    """All levels of the UNet with a skip connection joined on, and how many channels come before it."""
    for rows in ROWS:
        for index, (level, joined) in enumerate(zip(UNET, UNET_PAIRS, strict=True)):
            for pair in joined:
                yield Place(replace(level, channels=sum(pair)), rows, _rank(rows, index)), pair[0]


def _rank(rows: int, index: int) -> int:
    """0: the first level at the usual number of rows; 1: one of both; 2, 3: neither."""
    is_first, is_usual = index == 0, rows == ROWS[0]
    return {(True, True): 0, (True, False): 1, (False, True): 1}.get((is_first, is_usual), 2 + (rows == 1))


def normal(device: torch.device, generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Standard normal values, contiguous."""
    return torch.randn(shape, device=device, generator=generator).to(dtype)


def picture(device: torch.device, generator: torch.Generator, place: Place) -> Tensor:
    """[rows, channels, side, side] in half precision, channels last in memory."""
    level = place.level
    return normal(device, generator, place.rows, level.side, level.side, level.channels).permute(0, 3, 1, 2)


def scale_and_offset(device: torch.device, generator: torch.Generator, channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a normalisation."""
    weight, bias = (normal(device, generator, channels, dtype=torch.float32) for _ in range(2))
    return (1.0 + 0.1 * weight).half(), (0.1 * bias).half()
