"""Pictures from bytes: every colour form becomes RGB, and what is damaged, huge or foreign is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from gateway_house import encoded, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from steploom_common.arena import Pixels
from steploom_common.errors import InvalidRequest
from steploom_gateway.codec import FIELD, Format, ImageBounds, decode, encode
from steploom_gateway.headers import announced_size, detect, num_scans

BOUNDS = ImageBounds(2**20, 1000, 500_000)
ENOUGH = 4096  # pixels: nothing here is reduced
FORMATS = ("PNG", "JPEG", "WEBP")


def rgb(data: bytes) -> Pixels:
    return np.asarray(decode(data, BOUNDS, ENOUGH).image)


def problem(data: bytes, bounds: ImageBounds = BOUNDS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, bounds, ENOUGH)
    assert [item.field for item in caught.value.violations] == [FIELD]
    return caught.value.violations[0].problem


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of raw rows; colour 0 is grey, 2 is RGB."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 1), (31, 17), (64, 64)])
def test_each_format_and_odd_size(format: str, size: tuple[int, int]) -> None:
    sent = picture(*size)
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    tolerance = 8 if format == "JPEG" else 0
    assert np.abs(rgb(encoded(sent, format, **options)).astype(int) - sent).max() <= tolerance


def test_grey_palette_and_two_level_pictures() -> None:
    grey = Image.fromarray(picture()[:, :, 0])
    assert np.array_equal(rgb(saved(grey)), np.asarray(grey.convert("RGB")))
    palette = Image.fromarray(picture()).quantize(16)
    assert np.array_equal(rgb(saved(palette)), np.asarray(palette.convert("RGB")))
    two_level = grey.convert("1")
    assert np.array_equal(rgb(saved(two_level)), np.asarray(two_level.convert("RGB")))
    assert np.array_equal(rgb(saved(grey, "JPEG", quality=95)).std(axis=2), np.zeros((32, 32)))


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (256, 1), (32_896, 128), (65_535, 255)])
def test_16_bit_grey_keeps_its_range(value: int, expected: int) -> None:
    row = b"\x00" + struct.pack(">HH", value, value)
    assert rgb(png(2, 1, row, depth=16, colour=0)).tolist() == [[[expected] * 3] * 2]


def test_16_bit_rgb_keeps_its_high_bytes() -> None:
    row = b"\x00" + struct.pack(">HHH", 0x1234, 0xABCD, 0xFFFF)
    assert rgb(png(1, 1, row, depth=16)).tolist() == [[[0x12, 0xAB, 0xFF]]]


def test_cmyk_jpeg_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = rgb(saved(red, "JPEG", quality=95)).reshape(-1, 3)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_lies_on_white(mode: str, format: str) -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.putpixel((2, 0), (0, 0, 0, 255))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert rgb(saved(image.convert(mode), format, **options))[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_lies_on_white(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    key: Any = (0, 0, 0) if mode == "RGB" else 0
    image.putpixel((1, 0), (9, 9, 9) if mode == "RGB" else 9)
    assert rgb(saved(image, transparency=key))[0, 0].tolist() == [255, 255, 255]
    assert rgb(saved(image, transparency=key))[0, 1].tolist() != [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    upright = picture(24, 40, seed=5)
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(np.ascontiguousarray(turned)), format, exif=exif.tobytes(), quality=95)
    out = decode(data, BOUNDS, ENOUGH)
    assert (out.height, out.width) == (24, 40)
    assert np.abs(np.asarray(out.image).astype(int) - upright).max() <= 16


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # the log's business outside of tests
@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b""])
def test_damaged_exif_does_not_spoil_a_picture(exif: bytes) -> None:
    assert rgb(saved(Image.fromarray(picture()), "JPEG", exif=exif)).shape == (32, 32, 3)


def test_a_large_jpeg_is_reduced_while_it_is_decoded() -> None:
    out = decode(encoded(picture(640, 400), "JPEG"), BOUNDS, 64)
    assert (out.height, out.width) == (640, 400)
    assert out.image.size == (100, 160)


@pytest.mark.parametrize(
    ("format", "name"), [("GIF", "GIF"), ("BMP", "BMP"), ("TIFF", "TIFF"), ("ICO", "ICO"), ("PDF", "PDF")]
)
def test_other_formats_are_named(format: str, name: str) -> None:
    assert problem(saved(Image.fromarray(picture()), format)) == f"is {name}, must be PNG, JPEG or WebP"


def test_what_is_no_picture() -> None:
    assert problem(b"") == "is empty"
    assert problem(b"hello") == "is no picture that is known here, must be PNG, JPEG or WebP"


@pytest.mark.parametrize(("format", "name"), [("PNG", "PNG"), ("WEBP", "WebP")])
def test_animations_are_refused(format: str, name: str) -> None:
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    assert problem(data) == f"is a {name} of 3 frames, must have one"


def test_a_jpeg_with_a_second_picture_is_taken_for_its_first() -> None:
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(2)]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95, subsampling=0)
    assert np.abs(rgb(data).astype(int) - picture(seed=0)).max() <= 8


@pytest.mark.parametrize("format", FORMATS)
def test_bounds_come_before_decoding(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    data = encoded(picture(40, 100), format)
    assert "at most 99" in problem(data, ImageBounds(2**20, 99, 10_000))
    assert "at most 3999" in problem(data, ImageBounds(2**20, 100, 3999))
    assert f"at most {len(data) - 1}" in problem(data, ImageBounds(len(data) - 1, 100, 4000))


def vp8x(height: int, width: int) -> bytes:
    body = b"VP8X" + struct.pack("<II", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg_header(height: int, width: int) -> bytes:
    data = bytearray(encoded(picture(), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("side", [65_535, 20_000, 12_000, 5000])
@pytest.mark.parametrize("make", [vp8x, jpeg_header, lambda height, width: png(width, height, b"")])
def test_bombs_are_refused_by_their_header(side: int, make: Any) -> None:
    words = problem(make(side, side))
    assert "must be at most 1000" in words or "must have at most 500000" in words


def test_a_bomb_of_few_bytes_within_a_wide_bound() -> None:
    bomb = png(900, 500, bytes(501 * 2701))
    assert len(bomb) < 5000
    assert rgb(bomb).shape == (500, 900, 3)  # within the bounds: no harm
    assert "must have at most 449999" in problem(bomb, ImageBounds(2**20, 1000, 449_999))


def with_scans(count: int) -> bytes:
    """A progressive JPEG that comes again and again to its last scan."""
    data = encoded(picture(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - num_scans(data)) + data[-2:]


def test_a_jpeg_of_many_scans_is_refused() -> None:
    assert rgb(with_scans(100)).shape == (32, 32, 3)
    assert problem(with_scans(101)) == "is a JPEG of 101 scans, must have at most 100"


def test_zero_sizes() -> None:
    assert "at least 1" in problem(png(0, 5, b""))
    assert "at least 1" in problem(png(5, 0, b""))
    problem(jpeg_header(0, 10))
    problem(jpeg_header(10, 0))


@pytest.mark.parametrize("format", FORMATS)
def test_cut_at_every_byte(format: str) -> None:
    data = encoded(picture(20, 30), format)
    whole = rgb(data)
    for length in range(len(data)):
        try:
            pixels = rgb(data[:length])
        except InvalidRequest:
            continue
        # a decoder may do without the last marks of a file, but never makes pixels up
        assert length > len(data) - 24
        assert np.array_equal(pixels, whole)


SAMPLES = [encoded(picture(24, 16), format) for format in FORMATS]
SAMPLES.append(saved(Image.fromarray(picture()).quantize(16), transparency=3))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=12),
    st.integers(0, 40),
)
def test_mutated_bytes_are_a_picture_or_refused(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    mutated = bytearray(data)
    for place, value in changes:
        mutated[place % len(mutated)] = value
    try:
        out = decode(bytes(mutated[: len(mutated) - cut]), BOUNDS, ENOUGH)
    except InvalidRequest:
        return
    assert out.image.mode == "RGB"
    assert BOUNDS.problem(out.height, out.width) is None


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x10\x00\x00\x00WEBPVP8X"]), st.binary())
def test_noise_is_refused(head: bytes, tail: bytes) -> None:
    problem(head + tail)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\x00\x00"}])
def test_announced_sizes_are_those_that_are_decoded(format: str, options: dict[str, Any]) -> None:
    data = encoded(picture(21, 34), format, **options)
    assert announced_size(data, detect(data) or "") == (21, 34)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (32, 32)])
def test_encode_keeps_the_picture(size: tuple[int, int]) -> None:
    pixels = picture(*size, seed=7)
    assert np.array_equal(rgb(encode(pixels, Format.PNG)), pixels)
    assert np.array_equal(rgb(encode(pixels, Format.WEBP)), pixels)
    assert rgb(encode(pixels, Format.JPEG)).shape == pixels.shape
    assert encode(pixels, Format.RAW) == pixels.tobytes()
    assert np.array_equal(rgb(encode(pixels[::-1, ::-1], Format.PNG)), pixels[::-1, ::-1])
