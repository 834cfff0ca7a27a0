"""Between the SDK's dataclasses and the public protocol: the one place where the SDK touches protobuf."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from steploom.types import (
    Done,
    EditEvent,
    EditOptions,
    EditResult,
    Format,
    Queued,
    Started,
    Step,
    Timings,
    describe_input,
)
from steploom_protos.v1 import image_pb2 as pb

if TYPE_CHECKING:
    from steploom.types import ImageInput

Number = TypeVar("Number", int, float)

FORMATS: dict[Format, pb.ImageFormat] = {
    "png": pb.IMAGE_FORMAT_PNG,
    "jpeg": pb.IMAGE_FORMAT_JPEG,
    "webp": pb.IMAGE_FORMAT_WEBP,
    "raw": pb.IMAGE_FORMAT_RAW,
}
SIZE_RULES = {"crop": pb.SIZE_RULE_CROP, "pad": pb.SIZE_RULE_PAD, "stretch": pb.SIZE_RULE_STRETCH}
SAMPLERS = {"ddim": pb.SAMPLER_DDIM, "euler": pb.SAMPLER_EULER, "dpmpp_2m": pb.SAMPLER_DPMPP_2M}
_NAMES = {number: name for name, number in FORMATS.items()}


def edit_request(image: ImageInput, instruction: str, options: EditOptions) -> pb.EditRequest:
    """The request that an `edit` call sends.

    Raises:
        TypeError: an image or an option of a wrong type, or an unknown option.
        ValueError: a name or a number that the protocol cannot carry.
        OSError: the image's file cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    unknown = given.keys() - EditOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; known: {', '.join(EditOptions.__annotations__)}")
    for name, numbers in (("output_format", FORMATS), ("size_rule", SIZE_RULES), ("sampler", SAMPLERS)):
        if name in given:
            given[name] = _number(name, given[name], numbers)
    return pb.EditRequest(image=image_message(image), instruction=instruction, **given)  # type: ignore[arg-type]


def image_message(image: Any) -> pb.Image:
    """`image` as it travels: encoded bytes as they are, pixels as a raw tensor."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return pb.Image(encoded=bytes(image))
    if isinstance(image, (str, os.PathLike)):
        return pb.Image(encoded=Path(image).read_bytes())
    pixels = _pixels(image)
    height, width, _ = pixels.shape
    return pb.Image(tensor=pb.RawImage(data=pixels.tobytes(), height=height, width=width))


def edit_result(response: pb.EditResponse) -> EditResult:
    """The finished picture of a response."""
    image = response.image
    return EditResult(
        data=image.encoded if image.WhichOneof("content") == "encoded" else image.tensor.data,
        format=_NAMES.get(response.format, "png"),
        height=response.height,
        width=response.width,
        seed=response.seed,
        timings=_timings(response.timings),
        request_id=response.request_id,
        model=response.model,
        tier=response.tier,
        adapter=response.adapter,
    )


def edit_event(event: pb.EditEvent) -> EditEvent | None:
    """An event of a stream; None for one that a later release has added."""
    kind = event.WhichOneof("event")
    if kind == "queued":
        return Queued(event.queued.request_id, event.queued.predicted_s)
    if kind == "started":
        return Started()
    if kind == "step":
        preview = event.step.preview.encoded if event.step.HasField("preview") else None
        return Step(event.step.step, event.step.steps, preview)
    return Done(edit_result(event.done)) if kind == "done" else None


def _timings(timings: pb.Timings) -> Timings:
    return Timings(
        queue_s=timings.queue_s,
        encode_s=timings.encode_s,
        denoise_s=timings.denoise_s,
        decode_s=timings.decode_s,
        total_s=timings.total_s,
        ticks=timings.ticks,
        mean_rows_per_tick=timings.mean_rows_per_tick,
    )


def _number(name: str, value: Any, numbers: Any) -> int:
    if value not in numbers:
        raise ValueError(f"{name} is {value!r}, must be one of {', '.join(numbers)}")
    return int(numbers[value])


def _pixels(image: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A PIL image or an array as uint8 RGB, [height, width, 3]."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError(f"an array must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}")
        return image
    if hasattr(image, "convert") and hasattr(image, "mode"):  # a PIL image, without importing PIL
        return np.asarray(image.convert("RGB"))
    raise TypeError(
        f"image is {describe_input(image)}, must be bytes, a path, a PIL image or a uint8 array [height, width, 3]"
    )
