"""Where training pairs come from: rendered without end, or read from a folder of pictures and instructions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPTokenizer

from .data import LatentPool, add_chunk, chunk_seed
from .models import encode_mode
from .samples import to_tensor
from .text import PhraseTable, encode

INDEX = "metadata.jsonl"


@dataclass(frozen=True)
class Pairs:
    """A batch on the device."""

    before: Tensor  # [n, 4, h, w] latents of the input picture, unscaled mode
    after: Tensor  # [n, 4, h, w] latents of the edited picture, unscaled mode
    ids: Tensor  # [n, tokens] int64, the instruction
    edits: Tensor  # [n] int64, the edit's number; zeros where there are none


class PairSource(Protocol):
    """Gives batches for ever."""

    empty_ids: Tensor  # [tokens] int64, the empty instruction

    def next(self, count: int) -> Pairs:
        """So many pairs, drawn at random."""


@dataclass(frozen=True)
class PoolConfig:
    """How rendered pairs are kept on the device."""

    seed: int
    pool: int = 32768  # encoded pairs
    chunk: int = 1024  # pairs rendered at a time
    refresh_every: int = 48  # batches between two fresh chunks
    no_op: float = 0.03  # share of pairs whose edit changes nothing


class RenderedPairs:
    """Pairs of the renderer, encoded into a pool on the device that is refreshed while batches are drawn.

    Args:
        config: of the pool.
        vae: encodes the pictures.
        tokenizer: for the training sentences.
        size: pixels of a picture, a side.
        device: where the pool lies.
        batches_before: of an earlier part of the same run, whose chunks must not come again.
    """

    def __init__(
        self, config: PoolConfig, vae: AutoencoderKL, tokenizer: CLIPTokenizer, size: int, device: torch.device,
        batches_before: int = 0,
    ) -> None:  # fmt: skip
        self._config, self._vae, self._size = config, vae, size
        self._phrases = PhraseTable.build(tokenizer, device)
        self.empty_ids = self._phrases.empty
        factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self._pool = LatentPool.empty(config.pool, size // factor, device)
        self._chunk = batches_before * 1000
        self._batches = 0
        for _ in range(config.pool // config.chunk):
            self._refresh()

    def _refresh(self) -> None:
        config = self._config
        seed = chunk_seed(config.seed, 4 * self._chunk)
        add_chunk(self._pool, self._vae, self._size, config.chunk, seed, config.no_op)
        self._chunk += 1

    def next(self, count: int) -> Pairs:
        """See `PairSource`."""
        if self._batches % self._config.refresh_every == 0:
            self._refresh()
        self._batches += 1
        before, after, edits = self._pool.draw(count)
        return Pairs(before, after, self._phrases.draw(edits), edits)


class PairsError(ValueError):
    """A folder of pairs is incomplete or wrong; names the file and the line."""


@dataclass(frozen=True)
class PictureFiles:
    """One line of a folder's index."""

    before: Path
    after: Path | None
    instruction: str


def read_pairs(folder: Path) -> list[PictureFiles]:
    """The lines of ``metadata.jsonl``: ``{"before": "a.png", "after": "b.png", "instruction": "…"}``.

    Raises:
        PairsError: the index is missing or empty, a line is wrong, or a picture is missing.
    """
    index = folder / INDEX
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PairsError(f"{index}: cannot be read: {error.strerror}") from None
    found = [_read_line(folder, line, f"{index}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise PairsError(f"{index}: is empty")
    return found


def _read_line(folder: Path, line: str, where: str) -> PictureFiles:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise PairsError(f"{where}: is no JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("instruction"), str):
        raise PairsError(f"{where}: must be an object with the text instruction")
    before = _picture_file(folder, values, "before", where)
    if before is None:
        raise PairsError(f"{where}: names no picture before")
    return PictureFiles(before, _picture_file(folder, values, "after", where), values["instruction"])


def _picture_file(folder: Path, values: dict[str, object], key: str, where: str) -> Path | None:
    name = values.get(key)
    if name is None:
        return None
    if not isinstance(name, str) or not (folder / name).is_file():
        raise PairsError(f"{where}: {key} is {name!r}, which is no file in {folder}")
    return folder / name


def read_picture(file: Path, size: int) -> Tensor:
    """A picture as ``[3, size, size]`` in 0..1, its centre where it is not square.

    Raises:
        PairsError: it is no picture.
    """
    try:
        with Image.open(file) as image:
            return to_tensor(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS))
    except OSError as error:
        raise PairsError(f"{file}: cannot be read as a picture: {error}") from None


class FolderPairs:
    """Pairs of a folder, encoded once and kept in main memory (64 KB a pair at 512 x 512 pixels).

    Args:
        folder: with `metadata.jsonl`; each line has both pictures.
        vae: encodes the pictures.
        tokenizer: for the instructions.
        size: pixels of a picture, a side.
        device: where batches go.

    Raises:
        PairsError: see `read_pairs`; or a line has no picture after.
    """

    def __init__(
        self, folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, size: int, device: torch.device
    ) -> None:
        files = read_pairs(folder)
        incomplete = next((item for item in files if item.after is None), None)
        if incomplete is not None:
            raise PairsError(f"{folder / INDEX}: {incomplete.before.name} has no picture after")
        self._device = device
        self._before = _encode_all(vae, [item.before for item in files], size, device)
        self._after = _encode_all(vae, [item.after for item in files if item.after], size, device)
        self._ids = encode(tokenizer, [item.instruction for item in files])
        self.empty_ids = encode(tokenizer, [""])[0].to(device)

    def next(self, count: int) -> Pairs:
        """See `PairSource`."""
        rows = torch.randint(len(self._ids), (count,))
        before, after = (latents[rows].to(self._device).float() for latents in (self._before, self._after))
        return Pairs(before, after, self._ids[rows].to(self._device), torch.zeros(count, dtype=torch.long))


@torch.no_grad()
def _encode_all(vae: AutoencoderKL, files: list[Path], size: int, device: torch.device) -> Tensor:
    latents = [encode_mode(vae, read_picture(file, size)[None].to(device)).half().cpu() for file in files]
    return torch.cat(latents)
