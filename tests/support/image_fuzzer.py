"""Decodes damaged pictures in a process of its own: `image_fuzzer.py EXAMPLES SEED`; prints what it took, as JSON.

Damage is done to bytes, and to what a format is made of (chunks of a PNG with right sums, segments of a JPEG, chunks of
a WebP), since a decoder refuses most of the first kind at once.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

from gateway_house import encoded, picture
from PIL import Image

from steploom_common.errors import InvalidRequest
from steploom_gateway.codec import ImageBounds, decode

BOUNDS = ImageBounds(4 * 2**20, 2048, 2**20)
ENOUGH = 256
ROOM_BYTES = 512 * 2**20  # of addresses beyond those at the start: what runs away ends the process
BOMB_BYTES = 64 * 2**20  # that deflate to a few thousandths

Dice = random.Random
Chunk = tuple[bytes, bytes]  # its kind and what it holds


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def samples() -> dict[str, list[bytes]]:
    """Good pictures of every kind that decoders tell apart."""
    image = Image.fromarray(picture(48, 36))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "words"
    return {
        "PNG": [
            saved(image, "PNG", exif=exif.tobytes()),
            saved(image.convert("L"), "PNG"),
            saved(image.convert("RGBA"), "PNG"),
            saved(image.quantize(16), "PNG", transparency=3),
            saved(image.convert("1"), "PNG"),
            saved(image.convert("I;16"), "PNG"),
        ],
        "JPEG": [
            saved(image, "JPEG", exif=exif.tobytes()),
            saved(image, "JPEG", progressive=True),
            saved(image.convert("L"), "JPEG"),
            saved(image.convert("CMYK"), "JPEG"),
            saved(image, "JPEG", subsampling=0, restart_marker_blocks=1),
        ],
        "WEBP": [
            encoded(picture(48, 36), "WEBP"),
            encoded(picture(48, 36), "WEBP", lossless=True),
            saved(image.convert("RGBA"), "WEBP", exif=exif.tobytes()),
        ],
    }


def damaged_bytes(data: bytes, dice: Dice) -> bytes:
    out = bytearray(data)
    for _ in range(dice.randrange(1, 9)):
        place = dice.randrange(len(out))
        match dice.randrange(4):
            case 0:
                out[place] = dice.randrange(256)
            case 1:
                del out[place : place + dice.randrange(1, 16)]
            case 2:
                out[place:place] = dice.randbytes(dice.randrange(1, 16))
            case _:
                out[place : place + 4] = struct.pack(">I", dice.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1]))
        if not out:
            return b""
    return bytes(out[: dice.randrange(len(out))] if dice.random() < 0.2 else out)


def shuffled(chunks: list[Chunk], dice: Dice) -> list[Chunk]:
    """Some are twice there, missing, elsewhere, or hold something else."""
    for _ in range(dice.randrange(1, 4)):
        if not chunks:
            break
        place = dice.randrange(len(chunks))
        kind, data = chunks[place]
        match dice.randrange(5):
            case 0:
                chunks.insert(dice.randrange(len(chunks) + 1), (kind, data))
            case 1:
                del chunks[place]
            case 2:
                chunks.append(chunks.pop(place))
            case 3:
                chunks[place] = (kind, damaged_bytes(data, dice) if data else b"\0")
            case _:
                chunks[place] = (kind, data[: len(data) // 2])
    return chunks


def damaged_png(data: bytes, dice: Dice) -> bytes:
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    if dice.random() < 0.4:  # an animation, a profile, words, a picture: each a bomb
        bomb = zlib.compress(bytes(dice.choice([10**3, 10**6, BOMB_BYTES])), 1)
        chunk = dice.choice([
            (b"zTXt", b"key\0\0" + bomb), (b"iTXt", b"key\0\1\0\0\0" + bomb), (b"iCCP", b"name\0\0" + bomb),
            (b"IDAT", bomb), (b"acTL", struct.pack(">II", 2**31, 0)), (b"eXIf", b"II*\0\x08\0\0\0\xff\xff" * 9),
        ])  # fmt: skip
        chunks.insert(dice.randrange(1, len(chunks)), chunk)
    if dice.random() < 0.3:
        size = struct.pack(">II", dice.choice([1, 36, 1024, 2048, 4096]), dice.choice([1, 48, 1024, 2**31 - 1]))
        kind = bytes([dice.choice([1, 8, 16]), dice.randrange(8), 0, 0, dice.randrange(2)])
        chunks[0] = (b"IHDR", size + kind)
    parts = [
        struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))
        for kind, held in shuffled(chunks, dice)
    ]
    return data[:8] + b"".join(parts)


def damaged_jpeg(data: bytes, dice: Dice) -> bytes:
    segments, at = [], 2
    while data[at + 1] != 0xDA:
        (size,) = struct.unpack_from(">H", data, at + 2)
        segments.append((data[at : at + 2], data[at + 4 : at + 2 + size]))
        at += size + 2
    scans = data[at:]
    if dice.random() < 0.2:
        last = data[data.rindex(b"\xff\xda") : -2]
        scans = scans[:-2] + last * dice.choice([1, 50, 5000]) + scans[-2:]
    if dice.random() < 0.3:
        head = dice.choice([b"\x08", b"\x0c"]) + struct.pack(">HH", *dice.choices([1, 48, 1024, 65_535], k=2))
        frames = {b"\xff\xc0", b"\xff\xc2"}
        segments = [(kind, head + held[5:] if kind in frames else held) for kind, held in segments]
    parts = [kind + struct.pack(">H", len(held) + 2 & 0xFFFF) + held for kind, held in shuffled(segments, dice)]
    return data[:2] + b"".join(parts) + (damaged_bytes(scans, dice) if dice.random() < 0.3 else scans)


def damaged_webp(data: bytes, dice: Dice) -> bytes:
    chunks, at = [], 12
    while at + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        chunks.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    if dice.random() < 0.3:
        side = struct.pack("<I", dice.choice([1, 36, 2047, 16_383]) - 1)[:3]
        chunks.insert(0, (b"VP8X", bytes([dice.randrange(64), 0, 0, 0]) + side + side))
    parts = [
        kind + struct.pack("<I", dice.choice([len(held), len(held), 2**32 - 1])) + held + bytes(len(held) % 2)
        for kind, held in shuffled(chunks, dice)
    ]
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


DAMAGE: dict[str, Callable[[bytes, Dice], bytes]] = {"PNG": damaged_png, "JPEG": damaged_jpeg, "WEBP": damaged_webp}


def main() -> None:
    examples, seed = int(sys.argv[1]), int(sys.argv[2])
    dice, good = Dice(seed), samples()
    for data in itertools.chain(*good.values()):
        decode(data, BOUNDS, ENOUGH)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") as file:  # noqa: PTH123
        addresses = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + ROOM_BYTES, resource.RLIM_INFINITY))
    drawn = refused = 0
    slowest_s, problems = 0.0, set()
    for number in range(examples):
        name = dice.choice(list(good))
        damage = damaged_bytes if dice.random() < 0.3 else DAMAGE[name]
        data = damage(dice.choice(good[name]), dice)
        begin = time.process_time()
        try:
            out = decode(data, BOUNDS, ENOUGH)
            assert out.image.mode == "RGB", number
            assert BOUNDS.problem(out.height, out.width) is None, number
            drawn += 1
        except InvalidRequest as error:
            refused += 1
            problems.add(re.sub(r"\d+", "N", error.violations[0].problem.split(":")[0]))
        slowest_s = max(slowest_s, time.process_time() - begin)
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    took = {"drawn": drawn, "refused": refused, "risen_kib": rise, "slowest_s": slowest_s, "problems": sorted(problems)}
    print(json.dumps(took))


if __name__ == "__main__":
    main()
