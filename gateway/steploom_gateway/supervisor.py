"""The supervisor of this host, where there is one: asked on its socket to replace the engine workers."""

from __future__ import annotations

import asyncio
import json

from steploom_common.errors import FailedPrecondition, Unavailable


class Supervisor:
    """`steploom up`, which has started this gateway.

    Args:
        path: of its socket; empty: there is none.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"Supervisor({self._path or 'none'})"

    @property
    def is_there(self) -> bool:
        """Whether there is one to be asked."""
        return bool(self._path)

    async def replace_workers(self) -> None:
        """Replaces all engine workers one after the other; each new one reads the model directory anew.

        Returns when all are replaced; where nobody waits for it any more, it goes on.

        Raises:
            FailedPrecondition: one cannot be replaced, and goes on as it was; so do those behind it.
            Unavailable: the supervisor does not answer.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise Unavailable(f"the supervisor cannot be reached: {error.strerror or error}") from None
        try:
            writer.write(json.dumps({"restart": []}).encode() + b"\n")
            async for line in reader:
                said = json.loads(line)
                if said.get("done"):
                    return
                if "done" in said:
                    raise FailedPrecondition(f"{said.get('said', '')}; what serves goes on")
        except OSError:
            pass  # as if it had ended
        finally:
            writer.close()
        raise Unavailable("the supervisor has ended")
