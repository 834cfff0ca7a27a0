"""The codec works beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from gateway_house import encoded, picture

from steploom_common.errors import InvalidRequest
from steploom_gateway.codec import Format, ImageBounds
from steploom_gateway.pool import CodecPool, RawPicture
from steploom_gateway.resize import SizeRule

BOUNDS = ImageBounds(2**24, 4096, 2**24)


class Seen:
    """What the pool reports, and from which threads."""

    def __init__(self) -> None:
        self.operations: list[str] = []
        self.threads: set[str] = set()

    def __call__(self, operation: str, seconds: float) -> None:
        assert seconds >= 0
        self.operations.append(operation)
        self.threads.add(threading.current_thread().name)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def pool(seen: Seen) -> AsyncIterator[CodecPool]:
    pool = CodecPool(2, BOUNDS, seen)
    yield pool
    pool.close()


async def test_all_work_is_done_in_the_pools_threads(pool: CodecPool, seen: Seen) -> None:
    prepared = await pool.prepare(encoded(picture()), SizeRule.CROP, (16, 16))
    await pool.write(prepared.pixels, prepared.frame, Format.PNG)
    await pool.write_preview(prepared.pixels, (16, 16), prepared.frame, 8)
    with pytest.raises(InvalidRequest):
        await pool.prepare(b"x", SizeRule.CROP, (16, 16))
    assert seen.operations == ["decode", "encode", "encode", "decode"]
    assert all(name.startswith("codec") for name in seen.threads)


async def test_no_more_threads_than_allowed(pool: CodecPool, seen: Seen) -> None:
    data = encoded(picture(300, 300))
    await asyncio.gather(*(pool.prepare(data, SizeRule.CROP, (16, 16)) for _ in range(12)))
    assert len(seen.threads) <= 2


async def test_the_loop_turns_while_large_pictures_are_decoded(pool: CodecPool) -> None:
    data = encoded(picture(3000, 3000), compress_level=1)
    work = asyncio.gather(*(pool.prepare(data, SizeRule.STRETCH, (64, 64)) for _ in range(4)))
    turns = 0
    while not work.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns >= 10


async def test_a_cancelled_caller_does_not_hold_the_pool(pool: CodecPool) -> None:
    data = encoded(picture(2000, 2000), compress_level=1)
    works = [asyncio.create_task(pool.prepare(data, SizeRule.CROP, (16, 16))) for _ in range(8)]
    await asyncio.sleep(0)
    for work in works:
        work.cancel()
    await asyncio.wait(works)
    assert (await pool.prepare(encoded(picture()), SizeRule.CROP, (16, 16))).pixels.shape == (16, 16, 3)


async def test_raw_pixels_are_sized_like_any_other(pool: CodecPool) -> None:
    raw = RawPicture(picture(20, 40).tobytes(), 20, 40)
    prepared = await pool.prepare(raw, SizeRule.STRETCH, (16, 16))
    assert prepared.pixels.shape == (16, 16, 3)
    written = await pool.write(prepared.pixels, prepared.frame, Format.RAW)
    assert (written.height, written.width, len(written.data)) == (20, 40, 20 * 40 * 3)
