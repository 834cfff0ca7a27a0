"""What the SDK takes and gives: frozen dataclasses, no protobuf."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Union

import numpy as np
from numpy.typing import NDArray

from steploom.pictures import Format, encode, format_of, write_whole
from steploom_common.errors import Violation

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Done",
    "EditEvent",
    "EditOptions",
    "EditResult",
    "Format",
    "ImageInput",
    "Queued",
    "Started",
    "Step",
    "Timings",
    "Violation",
]

# encoded bytes, a path, a PIL image, or uint8 RGB [height, width, 3]
ImageInput: TypeAlias = Union[bytes, str, os.PathLike[str], "Image", NDArray[np.uint8]]
SizeRule = Literal["crop", "pad", "stretch"]
Sampler = Literal["ddim", "euler", "dpmpp_2m"]


class EditOptions(TypedDict, total=False):
    """Keyword arguments of `edit` and `edit_stream`; None, or leaving one out, takes the default."""

    tier: str | None  # class of service; default: the service's default tier
    model: str | None  # default: the one that is served
    steps: int | None  # denoising steps; default: the tier's
    guidance_scale: float | None  # pull towards the instruction, 1 to 30; default: the model's
    image_guidance_scale: float | None  # pull towards the input picture, 1 to 10; default: the model's
    seed: int | None  # of the initial noise, 0 to 2**64 - 1; default: drawn at random and returned
    sampler: Sampler | None  # default: the model's
    output_format: Format | None  # default: "png"
    size_rule: SizeRule | None  # how the picture becomes the model's square; default: "crop"
    preview_every: int | None  # edit_stream: a preview after every so many steps; default: none
    # The caller's own id, under which the same request may be sent again: it then joins the job that runs, or gets its
    # picture, in place of a second one. Default: the service makes one.
    request_id: str | None
    adapter: str | None  # low-rank adapter by name; "none": none; default: the tier's


@dataclass(frozen=True)
class Timings:
    """Where a request's time went; seconds."""

    queue_s: float  # from admission to the first tick
    encode_s: float  # in the tick that encoded picture and instruction
    denoise_s: float  # from the first to the last denoising tick
    decode_s: float  # in the tick that decoded the latents
    total_s: float  # from the arrival of the call to the answer, in the gateway
    ticks: int  # forward passes that the request rode in
    mean_rows_per_tick: float  # rows of all requests in its denoising ticks


@dataclass(frozen=True)
class EditResult:
    """A finished picture."""

    data: bytes = field(repr=False)  # the picture in `format`
    format: Format
    height: int  # pixels
    width: int  # pixels
    seed: int  # with it, the same request gives the same picture
    timings: Timings
    request_id: str
    model: str
    tier: str
    adapter: str  # low-rank adapter that it was drawn with; empty: none

    @cached_property
    def image(self) -> Image:
        """The picture as a PIL image, decoded on first use."""
        from PIL import Image

        if self.format == "raw":
            return Image.frombytes("RGB", (self.width, self.height), self.data)
        return Image.open(io.BytesIO(self.data)).convert("RGB")

    @property
    def array(self) -> NDArray[np.uint8]:
        """The picture as uint8 RGB, [height, width, 3]."""
        return np.asarray(self.image)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the picture to `path`, in the format of its suffix; whole or not at all."""
        target = Path(path)
        wanted = format_of(target)
        write_whole(target, self.data if wanted == self.format else encode(self.image, wanted))
        return target


@dataclass(frozen=True)
class Queued:
    """The request is admitted."""

    request_id: str
    predicted_s: float  # seconds until the picture is expected


@dataclass(frozen=True)
class Started:
    """Encoding has begun."""


@dataclass(frozen=True)
class Step:
    """A denoising step is done."""

    step: int  # 1 to `steps`
    steps: int
    preview: bytes | None = field(default=None, repr=False)  # a small PNG, where asked for


@dataclass(frozen=True)
class Done:
    """The last event."""

    result: EditResult


EditEvent = Queued | Started | Step | Done


def describe_input(image: Any) -> str:
    """The type of an image argument, for messages."""
    return f"{type(image).__module__}.{type(image).__qualname__}"
