"""A request as it came in, held against every bound at once, becomes an `EditOrder`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from steploom_common.adapter import NONE
from steploom_common.errors import InvalidRequest, NotFound, Violation
from steploom_gateway.caller import current_caller
from steploom_gateway.catalogue import Catalogue
from steploom_gateway.codec import Format, ImageBounds
from steploom_gateway.config import GatewayConfig
from steploom_gateway.pool import RawPicture
from steploom_gateway.resize import SizeRule
from steploom_protos.v1 import image_pb2

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{0,64}")
_MIN_SCALE = 1.0

REQUEST_ID_PROBLEM = "must be at most 64 characters of A-Z, a-z, 0-9 and . _ : -"

Choice = TypeVar("Choice", bound=IntEnum)


@dataclass(frozen=True)
class EditOrder:
    """A request whose fields are all within their bounds."""

    picture: bytes | RawPicture  # encoded, or raw
    instruction: str
    tier: str  # empty: the service's default tier
    model: str  # empty: the one that is served
    adapter: str  # empty: the tier's; none: none
    steps: int  # 0: the tier's
    guidance_scale: float  # 0: the model's
    image_guidance_scale: float  # 0: the model's
    seed: int | None  # None: to be drawn
    output_format: Format
    size_rule: SizeRule
    sampler: int  # steploom.v1.Sampler; 0: the model's
    preview_every: int  # steps; 0: none
    request_id: str  # empty: to be made


def read_edit(request: image_pb2.EditRequest, config: GatewayConfig, max_steps: int) -> EditOrder:
    """The order in a request.

    Args:
        request: as it came in.
        config: bounds.
        max_steps: that the model takes; with the config's, the lower counts.

    Raises:
        InvalidRequest: names every field that is out of its bound.
    """
    violations = list(_violations(request, config, min(max_steps, config.max_steps)))
    if violations:
        raise InvalidRequest(*violations)
    return EditOrder(
        picture=_picture(request.image),
        instruction=_composed(request.instruction),
        tier=request.tier or current_caller().own_tier,
        model=request.model,
        adapter=request.adapter,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        image_guidance_scale=request.image_guidance_scale,
        seed=request.seed if request.HasField("seed") else None,
        output_format=Format(request.output_format or Format.PNG),
        size_rule=SizeRule(request.size_rule or SizeRule.CROP),
        sampler=request.sampler,
        preview_every=request.preview_every,
        request_id=request.request_id,
    )


def check_names(order: EditOrder, catalogue: Catalogue) -> None:
    """Holds the names in an order against those that exist, and its tier against those that its caller may ask for.

    An empty name is a default, adapter `none` is no adapter.

    Raises:
        NotFound: lists those that exist.
        PermissionDenied: the tier is not for this caller, who must name one where some are closed to it.
    """
    for kind, name, known in (
        ("model", order.model, (catalogue.model.name,)),
        ("tier", order.tier, catalogue.tiers),
        ("adapter", "" if order.adapter == NONE else order.adapter, catalogue.model.adapters),
    ):
        if name and name not in known:
            raise NotFound(kind, name[:100], known)
    current_caller().check_tier(order.tier)


def is_request_id(text: str) -> bool:
    """Whether an id that a caller has chosen is well-formed; an empty one is."""
    return _REQUEST_ID.fullmatch(text) is not None


def _picture(image: image_pb2.Image) -> bytes | RawPicture:
    if image.WhichOneof("content") == "encoded":
        return image.encoded
    return RawPicture(image.tensor.data, image.tensor.height, image.tensor.width)


def _violations(request: image_pb2.EditRequest, config: GatewayConfig, max_steps: int) -> Iterator[Violation]:
    yield from _image_violations(request.image, config)
    yield from _found("instruction", _instruction_problem(request.instruction, config.max_instruction_chars))
    if request.HasField("steps") and not 1 <= request.steps <= max_steps:
        yield Violation("steps", f"is {request.steps}, must be at least 1 and at most {max_steps}")
    for field, bound in (
        ("guidance_scale", config.max_guidance_scale),
        ("image_guidance_scale", config.max_image_guidance_scale),
    ):
        if request.HasField(field):
            yield from _found(field, _scale_problem(getattr(request, field), bound))
    for field, choices in (
        ("output_format", image_pb2.ImageFormat),
        ("size_rule", image_pb2.SizeRule),
        ("sampler", image_pb2.Sampler),
    ):
        if getattr(request, field) not in choices.values():
            known = ", ".join(choices.keys())
            yield Violation(field, f"is {getattr(request, field)}, must be one of {known}")
    if request.preview_every > max_steps:
        yield Violation("preview_every", f"is {request.preview_every}, must be at most {max_steps}; 0 for none")
    if not is_request_id(request.request_id):
        yield Violation("request_id", REQUEST_ID_PROBLEM)
    if request.conditioning:
        yield Violation("conditioning", f"has {len(request.conditioning)} pictures, must be empty: no model takes any")


def _found(field: str, problem: str | None) -> Iterator[Violation]:
    if problem:
        yield Violation(field, problem)


def _image_violations(image: image_pb2.Image, config: GatewayConfig) -> Iterator[Violation]:
    content = image.WhichOneof("content")
    if content is None:
        yield Violation("image", "is missing: set `encoded` or `tensor`")
    elif content == "tensor":
        yield from _tensor_violations(image.tensor, image_bounds(config))
    elif not image.encoded:
        yield Violation("image.encoded", "is empty")
    elif len(image.encoded) > config.max_image_bytes:
        problem = f"has {len(image.encoded)} bytes, must have at most {config.max_image_bytes}"
        yield Violation("image.encoded", problem)


def _tensor_violations(tensor: image_pb2.RawImage, bounds: ImageBounds) -> Iterator[Violation]:
    problem = bounds.problem(tensor.height, tensor.width)
    if problem:
        yield Violation("image.tensor", problem)
        return
    expected = tensor.height * tensor.width * 3
    if len(tensor.data) != expected:
        problem = f"has {len(tensor.data)} bytes, must have height * width * 3 = {expected}"
        yield Violation("image.tensor.data", problem)
    elif expected > bounds.max_bytes:
        yield Violation("image.tensor.data", f"has {expected} bytes, must have at most {bounds.max_bytes}")


def image_bounds(config: GatewayConfig) -> ImageBounds:
    """The bounds of a picture."""
    return ImageBounds(config.max_image_bytes, config.max_image_side, config.max_image_pixels)


def _composed(instruction: str) -> str:
    """Without outer blanks, in Unicode's composed form: some keyboards send Korean letter by letter."""
    return unicodedata.normalize("NFC", instruction.strip())


def _instruction_problem(instruction: str, max_chars: int) -> str | None:
    instruction = _composed(instruction)
    if not instruction:
        return "is empty"
    if len(instruction) > max_chars:
        return f"has {len(instruction)} characters, must have at most {max_chars}"
    control = next((char for char in instruction if unicodedata.category(char) == "Cc"), None)
    return f"has the control character U+{ord(control):04X}" if control else None


def _scale_problem(value: float, bound: float) -> str | None:
    if _MIN_SCALE <= value <= bound:  # false for NaN
        return None
    return f"is {value:g}, must be at least {_MIN_SCALE:g} and at most {bound:g}"
