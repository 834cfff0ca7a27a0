"""What the host itself needs of a model to serve it: tokens of instructions, and the colours of previews.

`export.host` writes it beside the plans, where torch and its libraries are: a worker without them draws from the very
tokens that they would make.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steploom_engine_worker.engine import Pixels
from steploom_engine_worker.tensorrt.plan_store import REBUILD, PlanError

CONSTANTS, TOKENIZER = "host.json", "tokenizer.json"
FORMAT = 1  # of the constants; changes with the meaning of a field


@dataclass(frozen=True)
class Host:
    """See the module."""

    num_tokens: int  # that an instruction is padded or cut to
    colour_map: NDArray[np.float32] = field(repr=False)  # [channels + 1, 3]: see `preview.fit_latent_colours`
    tokenizer: Any = field(repr=False)  # tokenizers.Tokenizer, which pads and cuts

    def tokens(self, instructions: Sequence[str]) -> NDArray[np.int32]:
        """[instructions, tokens]."""
        found = self.tokenizer.encode_batch(list(instructions))
        return np.array([item.ids for item in found], np.int32).reshape(len(instructions), self.num_tokens)

    def preview(self, estimate: NDArray[np.float32]) -> Pixels:
        """Latents [channels, h, w], as they are estimated on the way, as a small picture [h, w, 3]."""
        channels, height, width = estimate.shape
        points = estimate.reshape(channels, -1).T
        colours = points @ self.colour_map[:channels] + self.colour_map[channels]
        with np.errstate(invalid="ignore"):  # a job that is not finite has failed already
            levels = np.nan_to_num(np.clip(colours * 127.5 + 127.5, 0.0, 255.0)).round()
        picture: Pixels = levels.astype(np.uint8).reshape(height, width, 3)
        return picture


def read_host(folder: Path) -> Host:
    """What was written beside the plans.

    Raises:
        PlanError: it is missing or not of this program.
    """
    from tokenizers import Tokenizer  # slow to load, and only where an engine is

    file = folder / CONSTANTS
    try:
        table = json.loads(file.read_bytes())
        if table["format"] != FORMAT:
            raise PlanError(f"{file}: is of format {table['format']}, this program reads {FORMAT}; {REBUILD}")
        count = int(table["num_tokens"])
        colour_map = np.array(table["colour_map"], np.float32)
        padding = {"pad_id": int(table["pad_id"]), "pad_token": str(table["pad_token"])}
    except OSError as error:
        raise PlanError(f"{file}: {error.strerror}; {REBUILD}") from None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"{file}: does not hold a model's constants: {error!r}; {REBUILD}") from None
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises nothing more precise
        raise PlanError(f"{folder / TOKENIZER}: cannot be read: {error}; {REBUILD}") from None
    tokenizer.enable_truncation(count)
    tokenizer.enable_padding(length=count, **padding)
    return Host(count, colour_map, tokenizer)
