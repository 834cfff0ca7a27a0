"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self, Unpack

import grpc

from steploom.access import Tls, authorization, choose_credentials
from steploom.channel import DEFAULT_ADDRESS, OPTIONS
from steploom.errors import translated
from steploom.translate import edit_event, edit_request, edit_result
from steploom.types import EditEvent, EditOptions, EditResult, ImageInput
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub


class Client:
    """Edits images. Safe to share between threads; close it, or use it as a context manager.

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
            grpc.insecure_channel(address, OPTIONS)
            if credentials is None
            else grpc.secure_channel(address, credentials, OPTIONS)
        )
        self._images = ImageServiceStub(self._channel)

    def __repr__(self) -> str:
        return f"Client({self.address!r})"

    def edit(
        self, image: ImageInput, instruction: str, *, timeout: float | None = None, **options: Unpack[EditOptions]
    ) -> EditResult:
        """Edits `image` by `instruction` and waits for the picture.

        Args:
            image: PNG, JPEG or WebP bytes, a path, a PIL image, or a uint8 array [height, width, 3].
            instruction: what to change, in plain words.
            timeout: seconds for the whole call; the service refuses what it cannot do in time. None: the tier's.
            options: see `EditOptions`.

        Raises:
            SteploomError: the class tells the cause.
            OSError: the image's file cannot be read.
        """
        request = edit_request(image, instruction, options)
        with translated():
            return edit_result(self._images.Edit(request, timeout=timeout, metadata=self._metadata))

    def edit_stream(
        self, image: ImageInput, instruction: str, *, timeout: float | None = None, **options: Unpack[EditOptions]
    ) -> Iterator[EditEvent]:
        """Like `edit`, but yields each event as it happens; the last is `Done`. Closing the iterator cancels."""
        return self._events(edit_request(image, instruction, options), timeout)

    def _events(self, request: object, timeout: float | None) -> Iterator[EditEvent]:
        with translated():
            call = self._images.EditStream(request, timeout=timeout, metadata=self._metadata)  # type: ignore[arg-type]
            try:
                for message in call:
                    event = edit_event(message)
                    if event is not None:
                        yield event
            finally:
                call.cancel()

    def close(self) -> None:
        """Ends the connection and every call on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
