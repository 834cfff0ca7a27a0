"""Each bound of the configuration: what it takes, what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway_house import encoded, opened, picture, request, status_of
from google.rpc import error_details_pb2, status_pb2

from steploom_protos.v1 import image_pb2


def image(height: int, width: int) -> image_pb2.Image:
    return image_pb2.Image(encoded=encoded(picture(height, width)))


def raw(height: int, width: int) -> image_pb2.Image:
    return image_pb2.Image(tensor=image_pb2.RawImage(data=bytes(height * width * 3), height=height, width=width))


# Setting, its value, fields that are just within it, fields that are just beyond, the field that is named, its bound.
CASES: list[tuple[str, Any, dict[str, Any], dict[str, Any], str, str]] = [
    ("max_image_bytes", 1200, {"image": raw(20, 20)}, {"image": raw(20, 21)}, "image.tensor.data", "1200"),
    ("max_image_side", 40, {"image": image(40, 8)}, {"image": image(8, 41)}, "image.encoded", "40"),
    ("max_image_side", 40, {"image": raw(8, 40)}, {"image": raw(41, 8)}, "image.tensor", "40"),
    ("max_image_pixels", 900, {"image": image(30, 30)}, {"image": image(30, 31)}, "image.encoded", "900"),
    ("max_image_pixels", 900, {"image": raw(30, 30)}, {"image": raw(31, 30)}, "image.tensor", "900"),
    (
        "max_instruction_chars",
        7,
        {"instruction": "꽃 추가해 줘"},
        {"instruction": "꽃을 추가해 줘"},
        "instruction",
        "7",
    ),
    ("max_steps", 20, {"steps": 20}, {"steps": 21}, "steps", "20"),
    ("max_steps", 20, {"preview_every": 20}, {"preview_every": 21}, "preview_every", "20"),
    ("max_guidance_scale", 8.5, {"guidance_scale": 8.5}, {"guidance_scale": 8.6}, "guidance_scale", "8.5"),
    (
        "max_image_guidance_scale",
        2.5,
        {"image_guidance_scale": 2.5},
        {"image_guidance_scale": 2.6},
        "image_guidance_scale",
        "2.5",
    ),
]


@pytest.mark.parametrize(
    ("setting", "value", "within", "beyond", "field", "bound"), CASES, ids=lambda case: str(case)[:24]
)
async def test_a_bound(
    tmp_path: Path, setting: str, value: Any, within: dict[str, Any], beyond: dict[str, Any], field: str, bound: str
) -> None:
    async with opened(tmp_path, **{setting: value}) as house:
        await house.stub.Edit(request(**within))
        error = await status_of(house.stub.Edit(request(**beyond)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert bound in (error.details() or "")
        status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
        named = error_details_pb2.BadRequest()
        assert status.details[0].Unpack(named)
        assert [row.field for row in named.field_violations] == [field]
        assert len(house.batcher.requests) == 1


async def test_a_message_is_refused_by_its_length(tmp_path: Path) -> None:
    async with opened(tmp_path, max_image_bytes=1024) as house:
        error = await status_of(house.stub.Edit(request(image=raw(700, 700))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in (error.details() or "")


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "/etc", "a/../b", "turbo/", "turbo\x00", "TURBO", "." * 64])
@pytest.mark.parametrize("kind", ["tier", "model", "adapter"])
async def test_a_name_reaches_nothing_but_what_is_listed(tmp_path: Path, kind: str, name: str) -> None:
    async with opened(tmp_path) as house:
        fields: dict[str, Any] = {kind: name}
        error = await status_of(house.stub.Edit(request(**fields)))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert not house.batcher.requests
