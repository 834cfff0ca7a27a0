"""The gate in front of every service: who comes in, how often, and what is known of callers behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from gateway_house import eventually, opened, request, status_of
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from oip_requests import infer_request, stub_of

from steploom_common.rpc import ErrorInterceptor, bind
from steploom_gateway.caller import ANYBODY, Caller, current_caller
from steploom_gateway.gate import Door, Gate, door_of
from steploom_gateway.tokens import TokenConfig, add_token, make_token

Status = grpc.StatusCode
OIP = "/inference.GRPCInferenceService"


class Book:
    """A file of tokens, and the tokens themselves."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.toml"
        self.path.write_text("")
        self.path.chmod(0o600)
        self._tokens: dict[str, str] = {}

    def add(self, name: str, **settings: Any) -> Book:
        self._tokens[name], hashed = make_token(name)
        add_token(self.path, name, TokenConfig(hash=hashed, **settings))
        return self

    def change(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        draft = self.path.with_suffix(".new")
        draft.write_text(text.replace(old, new))
        draft.replace(self.path)

    def __getitem__(self, name: str) -> tuple[tuple[str, str], ...]:
        """The metadata of a call."""
        return (("authorization", f"Bearer {self._tokens[name]}"),)

    def secrets(self) -> list[str]:
        return [token.rpartition("_")[2] for token in self._tokens.values()]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


class Everything:
    """A method of each kind, which waits where it is told, and says who calls."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.callers: list[Caller] = []

    async def unary(self, request: bytes, context: Any) -> bytes:
        return await self._answer(request)

    async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield await self._answer(request)

    async def writing(self, request: bytes, context: Any) -> None:
        await context.write(await self._answer(request))

    async def gather(self, requests: Any, context: Any) -> bytes:
        return b"".join([await self._answer(message) async for message in requests])

    async def both(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for message in requests:
            yield await self._answer(message)

    async def _answer(self, request: bytes) -> bytes:
        self.callers.append(current_caller())
        if request == b"wait":
            await self.go_on.wait()
        if request == b"fail":
            raise KeyError("a bug")
        return current_caller().name.encode()


METHODS = ("Unary", "Stream", "Writing", "Gather", "Both")


class Gated:
    """Everything behind a gate, on a socket."""

    def __init__(self, service: Everything, gate: Gate, channel: grpc.aio.Channel) -> None:
        self.service = service
        self.gate = gate
        self.now = 0.0
        self.causes: list[str] = []
        self._channel = channel

    async def call(
        self, method: str, metadata: Sequence[tuple[str, Any]] = (), messages: Sequence[bytes] = (b"",)
    ) -> bytes:
        path = method if method.startswith("/") else f"/test.Everything/{method}"
        call: Any
        if method == "Gather":
            call = self._channel.stream_unary(path)
            return bytes(await call(iter(messages), metadata=tuple(metadata)))
        if method == "Both":
            call = self._channel.stream_stream(path)
            call = call(iter(messages), metadata=tuple(metadata))
        elif method in ("Stream", "Writing"):
            call = self._channel.unary_stream(path)
            call = call(messages[0], metadata=tuple(metadata))
        else:
            call = self._channel.unary_unary(path)
            return bytes(await call(messages[0], metadata=tuple(metadata)))
        return b"".join([item async for item in call])


@asynccontextmanager
async def gated(tmp_path: Path, path: str, max_open: int = 0) -> AsyncIterator[Gated]:
    service = Everything()
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(service.unary),
        "Stream": grpc.unary_stream_rpc_method_handler(service.stream),
        "Writing": grpc.unary_stream_rpc_method_handler(service.writing),
        "Gather": grpc.stream_unary_rpc_method_handler(service.gather),
        "Both": grpc.stream_stream_rpc_method_handler(service.both),
    }
    oip: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(service.unary)
        for name in ("ServerLive", "ModelMetadata", "ModelInfer", "RepositoryModelLoad")
    }
    gate = Gate(path, max_open, lambda cause: served.causes.append(cause), lambda: served.now)
    server = grpc.aio.server(interceptors=[ErrorInterceptor(), gate])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("test.Everything", handlers),
            grpc.method_handlers_generic_handler(OIP[1:], oip),
        )
    )
    address = f"unix:{tmp_path}/gate.sock"
    bind(server, address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        served = Gated(service, gate, channel)
        yield served
    await server.stop(None)


def details_of(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    trailers = dict(error.trailing_metadata() or ())
    for row in status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details:
        found = kind()
        if row.Unpack(found):
            return found
    raise AssertionError(f"no {kind.__name__}")


@pytest.mark.parametrize("method", METHODS)
async def test_each_kind_of_method_wants_a_token_and_knows_its_caller(tmp_path: Path, book: Book, method: str) -> None:
    book.add("web", tiers=("free",)).add("ops", admin=True)
    async with gated(tmp_path, str(book.path)) as gate:
        error = await status_of(gate.call(method))
        assert (error.code(), "authorization: Bearer" in (error.details() or "")) == (Status.UNAUTHENTICATED, True)
        assert not gate.service.callers
        assert await gate.call(method, book["web"]) == b"web"
        assert await gate.call(method, book["ops"]) == b"ops"
        assert gate.service.callers == [Caller("web", ("free",)), Caller("ops", (), True)]


@pytest.mark.parametrize("method", METHODS)
async def test_without_a_file_anybody_may_call(tmp_path: Path, method: str) -> None:
    async with gated(tmp_path, "") as gate:
        assert await gate.call(method, (("authorization", "Bearer whatever"),)) == b""
        assert await gate.call(f"{OIP}/RepositoryModelLoad") == b""
        assert gate.service.callers == [ANYBODY, ANYBODY]


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", "Basic d2ViOnNlY3JldA=="),),
        (("authorization", f"Bearer steploom_web_{'0' * 64}"),),
        (("authorization", f"Bearer steploom_nobody_{'0' * 64}"),),
        (("authorization-bin", b"Bearer"),),
        (("token", "steploom_web"),),
    ],
)
async def test_a_wrong_token_is_refused(tmp_path: Path, book: Book, metadata: Any) -> None:
    book.add("web")
    async with gated(tmp_path, str(book.path)) as gate:
        error = await status_of(gate.call("Unary", metadata))
        assert error.code() is Status.UNAUTHENTICATED
        assert gate.causes == ["unauthenticated"]


async def test_two_tokens_are_none(tmp_path: Path, book: Book) -> None:
    book.add("web").add("ops")
    async with gated(tmp_path, str(book.path)) as gate:
        error = await status_of(gate.call("Unary", book["web"] + book["ops"]))
        assert error.code() is Status.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("method", "door"),
    [
        ("/grpc.health.v1.Health/Check", Door.OPEN),
        ("/grpc.health.v1.Health/Watch", Door.OPEN),
        (f"{OIP}/ServerLive", Door.OPEN),
        (f"{OIP}/ServerReady", Door.OPEN),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Door.KNOWN),
        (f"{OIP}/ModelMetadata", Door.KNOWN),
        (f"{OIP}/ModelInfer", Door.COUNTED),
        (f"{OIP}/ModelStreamInfer", Door.EACH),
        (f"{OIP}/RepositoryModelUnload", Door.ADMIN),
        (f"{OIP}/SystemSharedMemoryRegister", Door.ADMIN),
        ("/steploom.v1.ImageService/Edit", Door.COUNTED),
        ("/a.service.that.comes.later/Method", Door.COUNTED),
        ("/grpc.health.v1.HealthX/Check", Door.COUNTED),
    ],
)
def test_what_methods_ask_of_their_callers(method: str, door: Door) -> None:
    assert door_of(method) is door


async def test_doors(tmp_path: Path, book: Book) -> None:
    book.add("web", rate=0.001).add("ops", admin=True)
    async with gated(tmp_path, str(book.path)) as gate:
        await gate.call(f"{OIP}/ServerLive")
        assert (await status_of(gate.call(f"{OIP}/ModelMetadata"))).code() is Status.UNAUTHENTICATED
        for _ in range(3):  # what costs nothing is not counted
            await gate.call(f"{OIP}/ModelMetadata", book["web"])
        await gate.call(f"{OIP}/ModelInfer", book["web"])
        assert (await status_of(gate.call(f"{OIP}/ModelInfer", book["web"]))).code() is Status.RESOURCE_EXHAUSTED
        error = await status_of(gate.call(f"{OIP}/RepositoryModelLoad", book["web"]))
        assert (error.code(), error.details()) == (Status.PERMISSION_DENIED, "token 'web' is no administrator's")
        await gate.call(f"{OIP}/RepositoryModelLoad", book["ops"])
        assert gate.causes == ["unauthenticated", "rate", "permission_denied"]


async def test_too_fast_is_told_when_to_come_back(tmp_path: Path, book: Book) -> None:
    book.add("web", rate=2.0, burst=2).add("other", rate=2.0, burst=2)
    async with gated(tmp_path, str(book.path)) as gate:
        for _ in range(2):
            await gate.call("Unary", book["web"])
        error = await status_of(gate.call("Stream", book["web"]))
        assert error.code() is Status.RESOURCE_EXHAUSTED
        assert details_of(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500
        assert details_of(error, error_details_pb2.QuotaFailure).violations[0].subject == "token:web/rate"
        await gate.call("Unary", book["other"])
        gate.now += 0.5
        await gate.call("Unary", book["web"])


async def test_messages_of_a_stream_count_as_calls_do(tmp_path: Path, book: Book) -> None:
    book.add("web", rate=1.0, burst=3)
    async with gated(tmp_path, str(book.path)) as gate:
        assert await gate.call("Both", book["web"], [b""] * 3) == b"web" * 3
        gate.now += 3.0
        assert (await status_of(gate.call("Both", book["web"], [b""] * 4))).code() is Status.RESOURCE_EXHAUSTED
        gate.now += 2.0
        assert (await status_of(gate.call("Gather", book["web"], [b""] * 3))).code() is not Status.OK
        assert gate.causes == ["rate", "rate"]


@pytest.mark.parametrize("method", METHODS)
async def test_a_place_is_held_while_the_call_lasts(tmp_path: Path, book: Book, method: str) -> None:
    book.add("web", concurrency=1).add("other")
    async with gated(tmp_path, str(book.path)) as gate:
        waiting = asyncio.create_task(gate.call(method, book["web"], [b"wait"]))
        assert await eventually(lambda: len(gate.service.callers) == 1)
        error = await status_of(gate.call("Unary", book["web"]))
        assert error.code() is Status.RESOURCE_EXHAUSTED
        assert details_of(error, error_details_pb2.QuotaFailure).violations[0].subject == "token:web/concurrency"
        assert details_of(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
        await gate.call("Unary", book["other"])
        gate.service.go_on.set()
        await waiting
        await gate.call("Unary", book["web"])
        assert gate.causes == ["concurrency"]


@pytest.mark.parametrize("method", METHODS)
async def test_a_place_comes_back_when_a_call_is_cancelled_or_fails(tmp_path: Path, book: Book, method: str) -> None:
    book.add("web", concurrency=1)
    async with gated(tmp_path, str(book.path)) as gate:
        waiting = asyncio.create_task(gate.call(method, book["web"], [b"wait"]))
        assert await eventually(lambda: len(gate.service.callers) == 1)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert await eventually(lambda: "open=0" in repr(gate.gate))
        assert (await status_of(gate.call(method, book["web"], [b"fail"]))).code() is not Status.RESOURCE_EXHAUSTED
        assert await eventually(lambda: "open=0" in repr(gate.gate))
        await gate.call("Unary", book["web"])


async def test_where_an_entry_says_nothing_the_gateways_bound_counts(tmp_path: Path, book: Book) -> None:
    book.add("web").add("big", concurrency=2)
    async with gated(tmp_path, str(book.path), max_open=1) as gate:
        calls = [asyncio.create_task(gate.call("Unary", book[name], [b"wait"])) for name in ("web", "big", "big")]
        assert await eventually(lambda: len(gate.service.callers) == 3)
        for name, bound in (("web", 1), ("big", 2)):
            error = await status_of(gate.call("Unary", book[name]))
            assert f"may have {bound}" in (error.details() or "")
        gate.service.go_on.set()
        await asyncio.gather(*calls)


async def test_a_changed_file_counts_from_the_next_call_on(tmp_path: Path, book: Book) -> None:
    book.add("web", concurrency=1).add("gone")
    async with gated(tmp_path, str(book.path)) as gate:
        waiting = asyncio.create_task(gate.call("Unary", book["web"], [b"wait"]))
        await gate.call("Unary", book["gone"])
        assert await eventually(lambda: len(gate.service.callers) == 2)
        book.change("tokens.gone", "tokens.another")
        book.change("concurrency = 1", "concurrency = 2")
        book.add("new")
        assert (await status_of(gate.call("Unary", book["gone"]))).code() is Status.UNAUTHENTICATED
        await gate.call("Unary", book["new"])
        second = asyncio.create_task(gate.call("Unary", book["web"], [b"wait"]))
        assert await eventually(lambda: len(gate.service.callers) == 4)
        # the call that was open before the change still counts
        assert "2 requests open" in ((await status_of(gate.call("Unary", book["web"]))).details() or "")
        gate.service.go_on.set()
        await asyncio.gather(waiting, second)


async def test_a_file_that_has_become_wrong_locks_nobody_out(
    tmp_path: Path, book: Book, caplog: pytest.LogCaptureFixture
) -> None:
    book.add("web")
    async with gated(tmp_path, str(book.path)) as gate:
        book.change("[tokens.web]", "[tokens.web")
        for _ in range(3):
            await gate.call("Unary", book["web"])
        assert caplog.text.count("gateway.tokens: ") == 1
        book.change("[tokens.web", "[tokens.other]")
        assert (await status_of(gate.call("Unary", book["web"]))).code() is Status.UNAUTHENTICATED


async def test_a_strangers_message_is_not_read(tmp_path: Path, book: Book) -> None:
    """By its size it would be refused with another status, were it read."""
    async with opened(tmp_path, tokens=str(book.add("web").path), max_image_bytes=1024) as house:
        large = request(instruction="x" * 3_000_000)
        assert (await status_of(house.stub.Edit(large))).code() is Status.UNAUTHENTICATED
        assert (await status_of(house.stub.Edit(large, metadata=book["web"]))).code() is Status.RESOURCE_EXHAUSTED


async def test_the_gateways_services_are_behind_the_gate(tmp_path: Path, book: Book) -> None:
    async with opened(tmp_path, tokens=str(book.add("web").path)) as house:
        assert (await status_of(house.stub.Edit(request()))).code() is Status.UNAUTHENTICATED
        stream = house.stub.EditStream(request())
        assert (await status_of(stream.read())).code() is Status.UNAUTHENTICATED
        assert not house.batcher.requests
        assert (await house.stub.Edit(request(), metadata=book["web"])).model == "fake"
        health = health_pb2_grpc.HealthStub(house.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(house.channel)
        ask = [reflection_pb2.ServerReflectionRequest(list_services="")]
        assert (await status_of(reflection.ServerReflectionInfo(iter(ask)).read())).code() is Status.UNAUTHENTICATED
        listed = await reflection.ServerReflectionInfo(iter(ask), metadata=book["web"]).read()
        assert "steploom.v1.ImageService" in str(listed)
        assert await house.is_clean()


async def test_requests_of_one_stream_are_counted_one_by_one(tmp_path: Path, book: Book) -> None:
    """A refusal answers its request; the stream and the others go on."""
    book.add("web", concurrency=2, tiers=("free",))
    async with opened(tmp_path, tokens=str(book.path)) as house:
        house.batcher.play(hold_at="started")
        asked: asyncio.Queue[Any] = asyncio.Queue()

        async def requests() -> AsyncIterator[Any]:
            while (item := await asked.get()) is not None:
                yield item

        stub = stub_of(house)
        assert (await status_of(stub.ModelStreamInfer(iter(())).read())).code() is Status.UNAUTHENTICATED
        stream: Any = stub.ModelStreamInfer(requests(), metadata=book["web"])
        for name in "abc":
            await asked.put(infer_request(request_id=name, progress=False))
        first = await stream.read()
        assert first.infer_response.id == "c"
        assert "may have 2" in first.error_message
        house.batcher.resume.set()
        answers = [await stream.read() for _ in "ab"]
        assert {answer.infer_response.id for answer in answers} == {"a", "b"}
        assert not any(answer.error_message for answer in answers)
        await asked.put(infer_request(request_id="d", progress=False))
        assert (await stream.read()).error_message == ""
        await asked.put(None)
        assert {job.tier for job in house.batcher.requests} == {"free"}
        assert {job.caller for job in house.batcher.requests} == {"web"}
        assert await house.is_clean()


async def test_tiers_are_the_tokens(tmp_path: Path, book: Book) -> None:
    book.add("any").add("free", tiers=("free",)).add("both", tiers=("pro", "free"))
    async with opened(tmp_path, tokens=str(book.path)) as house:

        async def tier_of(name: str, **fields: Any) -> str:
            await house.stub.Edit(request(**fields), metadata=book[name])
            assert house.batcher.requests[-1].caller == name
            return house.batcher.requests[-1].tier

        assert [await tier_of(name) for name in ("any", "free", "both")] == ["", "free", "pro"]
        assert await tier_of("any", tier="pro") == "pro"
        assert await tier_of("both", tier="free") == "free"
        error = await status_of(house.stub.Edit(request(tier="pro"), metadata=book["free"]))
        assert error.code() is Status.PERMISSION_DENIED
        assert error.details() == "token 'free' is for tiers free, not for 'pro'"
        error = await status_of(house.stub.Edit(request(tier="prp"), metadata=book["free"]))
        assert error.code() is Status.NOT_FOUND


async def test_refusals_are_counted_and_logged_by_name(
    tmp_path: Path, book: Book, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    book.add("web", rate=0.001)
    async with opened(tmp_path, tokens=str(book.path)) as house:
        await house.stub.Edit(request(), metadata=book["web"])
        await status_of(house.stub.Edit(request(), metadata=book["web"]))
        await status_of(house.stub.Edit(request()))
        count = house.gateway.metrics.registry.get_sample_value
        for cause in ("rate", "unauthenticated"):
            assert count("steploom_gateway_refused_total", {"cause": cause}) == 1.0
        lines = [record.message for record in caplog.records if record.name == "steploom_gateway.access"]
        assert lines[0].endswith("token=web")
        assert lines[1:] == [
            "/steploom.v1.ImageService/Edit token=web status=RESOURCE_EXHAUSTED cause=rate",
            "/steploom.v1.ImageService/Edit token=- status=UNAUTHENTICATED cause=unauthenticated",
        ]
        shown = caplog.text + repr(house.gateway) + repr(house.gateway.gate)
    assert not any(secret in shown for secret in book.secrets())


@pytest.mark.parametrize(("listen", "is_told"), [("0.0.0.0:0", True), ("127.0.0.1:0", False)])
async def test_tokens_on_a_network_without_tls_are_told(
    tmp_path: Path, book: Book, caplog: pytest.LogCaptureFixture, listen: str, is_told: bool
) -> None:
    async with opened(tmp_path, tokens=str(book.path), listen=listen):
        assert ("tokens travel in the clear" in caplog.text) is is_told
