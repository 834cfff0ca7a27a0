"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio

from steploom.access import Tls, authorization, choose_credentials
from steploom.channel import DEFAULT_ADDRESS, OPTIONS
from steploom.errors import translated
from steploom.translate import edit_event, edit_request, edit_result
from steploom.types import EditEvent, EditOptions, EditResult, ImageInput
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub


class Client:
    """Edits images on the running event loop. Close it, or use it as an async context manager.

    Args:
        address: host:port of the gateway.
        tls: certificates of a secure connection; None: a plain one.
        token: that the service knows this client by; None: none.
        credentials: in place of `tls`, whatever gRPC offers.

    Raises:
        ConfigError: a file of `tls` cannot be read or is wrong.
        ValueError: the token has characters that no token has.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tls: Tls | None = None,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.address = address
        self._metadata = authorization(token)
        credentials = choose_credentials(credentials, tls)
        self._channel = (
            grpc.aio.insecure_channel(address, OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, OPTIONS)
        )
        self._images = ImageServiceStub(self._channel)

    def __repr__(self) -> str:
        return f"aio.Client({self.address!r})"

    async def edit(
        self, image: ImageInput, instruction: str, *, timeout: float | None = None, **options: Unpack[EditOptions]
    ) -> EditResult:
        """Edits `image` by `instruction`; arguments, result and errors as of `steploom.Client.edit`."""
        request = edit_request(image, instruction, options)
        with translated():
            return edit_result(await self._images.Edit(request, timeout=timeout, metadata=self._metadata))

    async def edit_stream(
        self, image: ImageInput, instruction: str, *, timeout: float | None = None, **options: Unpack[EditOptions]
    ) -> AsyncIterator[EditEvent]:
        """Like `edit`, but yields each event as it happens; the last is `Done`. Closing the iterator cancels."""
        request = edit_request(image, instruction, options)
        with translated():
            call = self._images.EditStream(request, timeout=timeout, metadata=self._metadata)
            try:
                async for message in call:
                    event = edit_event(message)
                    if event is not None:
                        yield event
            finally:
                call.cancel()

    async def close(self) -> None:
        """Ends the connection and every call on it."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
