"""Pictures in and out: in the message, or through a shared-memory arena of this host."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from steploom_common.arena import ArenaViews, RegionRef
from steploom_engine_worker.commands import Picture
from steploom_engine_worker.engine import Engine, Pixels


class Pictures:
    """Opens arenas in one folder and nowhere else.

    A picture that comes in is not copied here: the engine does that, its device perhaps straight from the arena. One
    that goes out is copied here and not by the device: whether its region is still lent is to be looked at right before
    it is written, and a device writes some time after it was told to.

    Args:
        arena_directory: the folder.
        engine: is told which memory is shared.
    """

    def __init__(self, arena_directory: Path, engine: Engine) -> None:
        self._views = ArenaViews(arena_directory, engine.share, engine.unshare)

    def read(self, picture: Picture, height: int, width: int) -> Pixels:
        """The pixels, of the model's size; those in a region stay what they are while the job lives.

        Raises:
            ValueError: another size, too few bytes, or a region that cannot be opened.
        """
        if (picture.height, picture.width) != (height, width):
            raise ValueError(f"the picture is {picture.height}x{picture.width}, the model takes {height}x{width}")
        if picture.region is not None:
            return self._view(picture.region, height, width)
        if len(picture.data) != height * width * 3:
            raise ValueError(f"the picture has {len(picture.data)} bytes, must have {height * width * 3}")
        return np.frombuffer(picture.data, np.uint8).reshape(height, width, 3)

    def write(self, pixels: Pixels, region: RegionRef | None) -> Picture:
        """Puts a picture into its region, or into the message where there is none.

        Raises:
            ValueError: the region cannot be opened, or is too small.
        """
        height, width, _ = pixels.shape
        if region is None:
            return Picture(height, width, data=pixels.tobytes())
        self._view(region, height, width)[:] = pixels
        return Picture(height, width, region=region)

    def close(self) -> None:
        """Lets go of every arena."""
        self._views.close()

    def _view(self, region: RegionRef, height: int, width: int) -> Pixels:
        try:
            return self._views.picture(region, height, width)
        except OSError as error:
            raise ValueError(f"{region.path} cannot be opened: {error.strerror}") from None
