"""The codec's threads: decoding and encoding never run on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from steploom_common.arena import Pixels
from steploom_gateway.codec import Decoded, Format, ImageBounds, decode, encode
from steploom_gateway.resize import Frame, SizeRule, fit, preview, restore

Result = TypeVar("Result")

# A picture is decoded at no less than this many times the model's size, so that reducing it loses nothing.
_OVERSIZE = 2


@dataclass(frozen=True)
class RawPicture:
    """A picture without a container, of a length that has been checked."""

    data: bytes  # uint8 RGB, row by row
    height: int  # pixels
    width: int


@dataclass(frozen=True)
class Prepared:
    """A picture as the model takes it."""

    pixels: Pixels  # [height, width, 3] of the model
    frame: Frame  # the way back


@dataclass(frozen=True)
class Written:
    """A picture as it is answered."""

    data: bytes
    height: int  # pixels
    width: int


class CodecPool:
    """Runs the codec in a bounded number of threads.

    Args:
        threads: how many pictures are worked on at once; more wait.
        bounds: what is refused.
        observe: told the operation ("decode", "encode") and its seconds.
    """

    def __init__(self, threads: int, bounds: ImageBounds, observe: Callable[[str, float], None]) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="codec")
        self._bounds = bounds
        self._observe = observe

    async def prepare(self, picture: bytes | RawPicture, rule: SizeRule, model: tuple[int, int]) -> Prepared:
        """Decodes a picture and brings it to the model's height and width.

        Raises:
            InvalidRequest: it cannot be decoded, or exceeds the bounds.
        """
        return await self._run("decode", _prepare, picture, self._bounds, rule, model)

    async def write(self, pixels: Pixels, frame: Frame, format: Format) -> Written:
        """Encodes the model's picture as the answer."""
        return await self._run("encode", _write, pixels, frame, format)

    async def write_preview(self, pixels: Pixels, model: tuple[int, int], frame: Frame, max_side: int) -> bytes:
        """A small PNG of a picture that is still being drawn."""
        return await self._run("encode", _write_preview, pixels, model, frame, max_side)

    def close(self) -> None:
        """Lets running work end; drops what waits."""
        self._executor.shutdown(cancel_futures=True)

    async def _run(self, operation: str, work: Callable[..., Result], *arguments: object) -> Result:
        def timed() -> Result:
            start = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                self._observe(operation, time.perf_counter() - start)

        return await asyncio.get_running_loop().run_in_executor(self._executor, timed)


def _prepare(picture: bytes | RawPicture, bounds: ImageBounds, rule: SizeRule, model: tuple[int, int]) -> Prepared:
    decoded = _unpacked(picture) if isinstance(picture, RawPicture) else decode(picture, bounds, _OVERSIZE * max(model))
    return Prepared(*fit(decoded.image, (decoded.height, decoded.width), model, rule))


def _unpacked(picture: RawPicture) -> Decoded:
    pixels = np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3)
    return Decoded(Image.fromarray(pixels), picture.height, picture.width)


def _write(pixels: Pixels, frame: Frame, format: Format) -> Written:
    answer = restore(pixels, frame)
    return Written(encode(answer, format), answer.shape[0], answer.shape[1])


def _write_preview(pixels: Pixels, model: tuple[int, int], frame: Frame, max_side: int) -> bytes:
    return encode(preview(pixels, model, frame, max_side), Format.PNG)
