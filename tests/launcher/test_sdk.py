"""Both clients against a gateway of this process."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

import steploom
from steploom import Client, Done, EditEvent, EditResult, Queued, Started, Step, SteploomError, aio
from steploom.errors import Cancelled, from_rpc_error
from steploom.testing import FakeGateway, serving
from steploom_common import errors as served
from steploom_common.errors import Violation
from steploom_protos.v1 import image_pb2 as pb

PICTURE = b"not looked at by the fake"


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with serving(FakeGateway()) as running:
        yield running


class Caller:
    """One of the two clients, behind one face."""

    def __init__(
        self, edit: Callable[..., Awaitable[EditResult]], stream: Callable[..., AsyncIterator[EditEvent]]
    ) -> None:
        self.edit = edit
        self.stream = stream


@asynccontextmanager
async def blocking(address: str) -> AsyncIterator[Caller]:
    async def edit(*args: Any, **options: Any) -> EditResult:
        return await asyncio.to_thread(client.edit, *args, **options)

    async def stream(*args: Any, **options: Any) -> AsyncIterator[EditEvent]:
        for event in await asyncio.to_thread(lambda: list(client.edit_stream(*args, **options))):
            yield event

    with Client(address) as client:
        yield Caller(edit, stream)


@asynccontextmanager
async def asynchronous(address: str) -> AsyncIterator[Caller]:
    async with aio.Client(address) as client:
        yield Caller(client.edit, client.edit_stream)


both = pytest.mark.parametrize("connect", [blocking, asynchronous])


@both
async def test_edit_gives_a_picture(gateway: FakeGateway, connect: Any) -> None:
    async with connect(gateway.address) as client:
        result = await client.edit(PICTURE, "금발로 만들어 줘", tier="free", steps=3, seed=2**64 - 1, adapter="fast")
    assert result.image.size == (8, 8)
    assert result.array.shape == (8, 8, 3)
    assert (result.seed, result.tier, result.adapter, result.format) == (2**64 - 1, "free", "fast", "png")
    assert result.timings.ticks == 5
    assert gateway.requests[0].instruction == "금발로 만들어 줘"
    assert gateway.requests[0].image.encoded == PICTURE


@both
async def test_stream_tells_every_step(gateway: FakeGateway, connect: Any) -> None:
    async with connect(gateway.address) as client:
        events = [event async for event in client.stream(PICTURE, "close the eyes", steps=3, preview_every=2)]
    assert events[:2] == [Queued("fake-1", 0.5), Started()]
    steps = [event for event in events if isinstance(event, Step)]
    assert [(event.step, event.steps, event.preview is not None) for event in steps] == [
        (1, 3, False),
        (2, 3, True),
        (3, 3, False),
    ]
    assert isinstance(events[-1], Done)


@both
async def test_every_option_reaches_the_service_and_the_rest_stays_unset(gateway: FakeGateway, connect: Any) -> None:
    async with connect(gateway.address) as client:
        await client.edit(PICTURE, "a", guidance_scale=7.5, image_guidance_scale=1.5, sampler="euler", adapter="lora",
                          output_format="jpeg", size_rule="pad", request_id="me-1", model="m", tier=None)  # fmt: skip
    request = gateway.requests[0]
    assert request == pb.EditRequest(
        image=pb.Image(encoded=PICTURE),
        instruction="a",
        model="m",
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        sampler=pb.SAMPLER_EULER,
        output_format=pb.IMAGE_FORMAT_JPEG,
        size_rule=pb.SIZE_RULE_PAD,
        request_id="me-1",
        adapter="lora",
    )
    assert not request.HasField("seed")


ERRORS = [
    (served.InvalidRequest(Violation("steps", "is 0, must be at least 1")), steploom.InvalidArgument),
    (served.NotFound("tier", "gold", ["free", "pro"]), steploom.NotFound),
    (served.Exhausted("the queue is full", "tier:free", 1.5), steploom.ResourceExhausted),
    (served.DeadlineMissed("cannot finish in time", 12.5), steploom.DeadlineExceeded),
    (served.Unavailable("draining", 2.0), steploom.Unavailable),
    (served.JobFailed("abc123"), steploom.InternalError),
]


@both
@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=[kind.__name__ for _, kind in ERRORS])
async def test_errors_keep_their_class_and_details(
    gateway: FakeGateway, connect: Any, error: served.SteploomError, kind: type[SteploomError]
) -> None:
    gateway.error = error
    async with connect(gateway.address) as client:
        with pytest.raises(SteploomError) as unary:
            await client.edit(PICTURE, "x")
        with pytest.raises(SteploomError) as stream:
            [event async for event in client.stream(PICTURE, "x")]
    for caught in (unary.value, stream.value):
        assert type(caught) is kind
        assert (str(caught), caught.status) == (str(error), error.status)
        assert caught.violations == getattr(error, "violations", ())
        assert caught.retry_after == getattr(error, "retry_after_s", None)
        assert caught.predicted_s == getattr(error, "predicted_s", None)


@both
async def test_the_timeout_is_the_deadline_of_the_call(connect: Any) -> None:
    with serving(FakeGateway(steps=1000, step_s=0.1)) as gateway:
        async with connect(gateway.address) as client:
            for timeout in (0.3, 3.0, 30.0):
                with pytest.raises(steploom.DeadlineExceeded):
                    await client.edit(PICTURE, "x", timeout=timeout)
                if gateway.requests:  # else this machine stood still for so long that none was sent
                    break
        assert await asyncio.to_thread(gateway.cancelled.wait, 60.0)


@both
async def test_nobody_there_is_unavailable_without_a_hint_to_retry(connect: Any) -> None:
    async with connect("127.0.0.1:1") as client:
        with pytest.raises(steploom.Unavailable) as error:
            await client.edit(PICTURE, "x", timeout=60.0)
    assert error.value.retry_after is None


def test_leaving_a_stream_cancels_the_request() -> None:
    with serving(FakeGateway(steps=1000, step_s=0.05)) as gateway, Client(gateway.address) as client:
        events = client.edit_stream(PICTURE, "x")
        assert isinstance(next(events), Queued)
        events.close()  # type: ignore[attr-defined]
        assert gateway.cancelled.wait(60.0)


async def test_leaving_an_asynchronous_stream_cancels_the_request() -> None:
    with serving(FakeGateway(steps=1000, step_s=0.05)) as gateway:
        async with aio.Client(gateway.address) as client:
            events = client.edit_stream(PICTURE, "x")
            assert isinstance(await anext(events), Queued)
            await events.aclose()  # type: ignore[attr-defined]
            assert await asyncio.to_thread(gateway.cancelled.wait, 60.0)


@pytest.mark.parametrize("form", ["path", "string", "pil", "grey pil", "array", "strided array"])
def test_pictures_in_every_form(gateway: FakeGateway, tmp_path: Path, form: str) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    file = tmp_path / "in.png"
    Image.fromarray(pixels).save(file)
    forms: dict[str, Any] = {
        "path": file,
        "string": str(file),
        "pil": Image.fromarray(pixels),
        "grey pil": Image.new("L", (3, 2)),
        "array": pixels,
        "strided array": np.repeat(pixels, 2, axis=1)[:, ::2],
    }
    with Client(gateway.address) as client:
        client.edit(forms[form], "x")
    sent = gateway.requests[0].image
    if form in ("path", "string"):
        assert sent.encoded == file.read_bytes()
    else:
        assert (sent.tensor.height, sent.tensor.width) == (2, 3)
        assert sent.tensor.data == (bytes(18) if form == "grey pil" else pixels.tobytes())


@pytest.mark.parametrize(
    ("image", "options", "kind", "message"),
    [
        (np.zeros((2, 2), np.uint8), {}, TypeError, "must be uint8"),
        (np.zeros((2, 2, 3), np.float32), {}, TypeError, "not float32"),
        (42, {}, TypeError, "builtins.int"),
        ("/no/such/picture.png", {}, FileNotFoundError, "picture.png"),
        (PICTURE, {"sampler": "heun"}, ValueError, "one of ddim, euler, dpmpp_2m"),
        (PICTURE, {"colour": "red"}, TypeError, "unknown option colour"),
        (PICTURE, {"steps": -1}, ValueError, "."),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    gateway: FakeGateway, image: Any, options: Any, kind: type[Exception], message: str
) -> None:
    with Client(gateway.address) as client, pytest.raises(kind, match=message):
        client.edit(image, "x", **options)
    assert gateway.requests == []


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "raw"])
def test_results_can_be_saved_in_any_format(gateway: FakeGateway, tmp_path: Path, format: Any) -> None:
    with Client(gateway.address) as client:
        result = client.edit(PICTURE, "x", output_format=format)
    for suffix, name in ((".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP")):
        with Image.open(result.save(tmp_path / f"out{suffix}")) as saved:
            assert (saved.format, saved.size) == (name, (8, 8))
    assert len(list(tmp_path.iterdir())) == 3
    if format == "png":
        assert Image.open(io.BytesIO(result.data)).format == "PNG"
        assert (tmp_path / "out.png").read_bytes() == result.data


class BrokenDetails(grpc.RpcError):
    """An error whose details are no protobuf."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", b"\xff\xff\xff"), ("grpc-retry-pushback-ms", "-1"))


def test_unreadable_details_do_not_hide_the_error() -> None:
    error = from_rpc_error(BrokenDetails())
    assert type(error) is Cancelled
    assert (str(error), error.retry_after) == ("cancelled", None)
