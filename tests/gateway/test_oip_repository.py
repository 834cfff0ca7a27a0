"""The model repository: what its index shows, and adapters of the pipeline that calls load and unload."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from gateway_house import House, opened, request, status_of
from oip_requests import infer_request, stub_of

from steploom_common.errors import FailedPrecondition, NotInPlace
from steploom_protos.inference import grpc_service_pb2 as pb

Status = grpc.StatusCode
STEPS = ["fake", "fake.encode", "fake.denoise", "fake.decode"]
TURBO, LATE = "fake.adapters.turbo", "fake.adapters.late"


@pytest.fixture
async def open_house(tmp_path: Path) -> AsyncIterator[House]:
    """One whose clients may load and unload; it looks at the batcher only when it must."""
    async with opened(tmp_path, remote_model_control=True, poll_s=60.0) as house:
        yield house


async def index(house: House, only_ready: bool = False) -> dict[str, tuple[str, str]]:
    answer = await stub_of(house).RepositoryIndex(pb.RepositoryIndexRequest(ready=only_ready))
    assert {row.version for row in answer.models} == {"1"}
    return {row.name: (row.state, row.reason) for row in answer.models}


async def load(house: House, name: str, **fields: object) -> None:
    await stub_of(house).RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name, **fields))  # type: ignore[arg-type]


async def unload(house: House, name: str, **fields: object) -> None:
    await stub_of(house).RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name, **fields))  # type: ignore[arg-type]


async def is_ready(house: House, name: str) -> bool:
    return (await stub_of(house).ModelReady(pb.ModelReadyRequest(name=name))).ready


async def test_an_adapter_can_be_asked_for_once_it_is_loaded(open_house: House) -> None:
    house = open_house
    assert await index(house) == dict.fromkeys([*STEPS, TURBO], ("READY", ""))
    error = await status_of(house.stub.Edit(request(adapter="late")))
    assert (error.code(), "there is: turbo" in str(error.details())) == (Status.NOT_FOUND, True)
    assert not await is_ready(house, LATE)
    await load(house, LATE)
    assert await is_ready(house, LATE)
    await house.stub.Edit(request(adapter="late"))
    assert house.batcher.requests[-1].adapter == "late"
    await unload(house, LATE)
    assert (await status_of(house.stub.Edit(request(adapter="late")))).code() is Status.NOT_FOUND
    assert not await is_ready(house, LATE)
    assert (await index(house))[LATE] == ("UNAVAILABLE", "unloaded")
    assert await index(house, only_ready=True) == dict.fromkeys([*STEPS, TURBO], ("READY", ""))


async def test_what_the_batcher_refuses_is_told_as_it_says_it(open_house: House) -> None:
    house = open_house
    for refusal in (FailedPrecondition("adapter.safetensors: is missing"), NotInPlace("there are: turbo")):
        house.batcher.refuse_adapters = refusal
        for call in (load(house, LATE), unload(house, TURBO)):
            error = await status_of(call)
            assert (error.code(), error.details()) == (refusal.status, str(refusal))
    assert (await index(house))[TURBO] == ("READY", "")


async def test_without_a_supervisor_the_pipeline_is_the_workers_to_load(open_house: House) -> None:
    error = await status_of(load(open_house, "fake"))
    assert error.code() is Status.FAILED_PRECONDITION
    assert "replace them where they run, one by one (in Kubernetes by a rollout)" in str(error.details())
    for name in STEPS[1:]:
        error = await status_of(load(open_house, name))
        assert error.code() is Status.FAILED_PRECONDITION
        assert f"{name} is a step of fake, which is loaded as a whole" in str(error.details())
    for name in STEPS:
        error = await status_of(unload(open_house, name))
        assert error.code() is Status.FAILED_PRECONDITION
        assert "its adapters, as fake.adapters.NAME, can be unloaded by this call" in str(error.details())


SAID = b'{"said": "worker-0: replacing it"}\n'


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        (SAID + b'{"done": true}\n', None, ""),
        (
            SAID + b'{"done": false, "said": "worker-0 is not replaced: it ends"}\n',
            Status.FAILED_PRECONDITION,
            "worker-0 is not replaced: it ends; what serves goes on",
        ),
        (SAID, Status.UNAVAILABLE, "the supervisor has ended"),
        (None, Status.UNAVAILABLE, "the supervisor cannot be reached: No such file"),
    ],
)
async def test_a_supervisor_replaces_the_pipelines_workers(
    tmp_path: Path, answers: bytes | None, code: Status | None, words: str
) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(answers or b"")
        writer.close()
        await writer.wait_closed()

    path = f"{tmp_path}/control.sock"
    async with opened(tmp_path, remote_model_control=True, supervisor=path) as house:
        server = await asyncio.start_unix_server(answer, path) if answers is not None else None
        if code is None:
            await load(house, "fake")
        else:
            error = await status_of(load(house, "fake"))
            assert (error.code(), words in str(error.details())) == (code, True), error.details()
        if server is not None:
            server.close()
            await server.wait_closed()
    assert [json.loads(line) for line in asked] == [{"restart": []}] * (answers is not None)


@pytest.mark.parametrize(
    "name", ["other", "fakes", "fake.adapters", "fake.adapters.", "fake.adapter.late", "fake.late"]
)
async def test_names_that_nobody_keeps(open_house: House, name: str) -> None:
    for call in (load(open_house, name), unload(open_house, name)):
        error = await status_of(call)
        assert error.code() is Status.NOT_FOUND
        assert f"model {name!r} does not exist; there are: fake, fake.encode" in str(error.details())


async def test_what_cannot_be_asked_for(open_house: House) -> None:
    text = pb.ModelRepositoryParameter(string_param="{}")
    dependents = pb.ModelRepositoryParameter(bool_param=True)
    refusals = [
        (load(open_house, LATE, parameters={"config": text}), Status.UNIMPLEMENTED, "as its folder says"),
        (load(open_house, LATE, repository_name="a"), Status.UNIMPLEMENTED, "there is one repository"),
        (unload(open_house, LATE, repository_name="a"), Status.UNIMPLEMENTED, "there is one repository"),
        (unload(open_house, TURBO, parameters={"now": dependents}), Status.INVALID_ARGUMENT, "parameters.now: does"),
        (load(open_house, ""), Status.INVALID_ARGUMENT, "model_name: has 0 characters, must have 1 to 300"),
        (unload(open_house, "a" * 301), Status.INVALID_ARGUMENT, "model_name: has 301 characters"),
    ]  # fmt: skip
    for call, code, words in refusals:
        error = await status_of(call)
        assert (error.code(), words in str(error.details())) == (code, True), error.details()
    await unload(open_house, TURBO, parameters={"unload_dependents": dependents})  # as Triton's client sends it


async def test_an_adapter_is_asked_for_as_a_parameter(open_house: House) -> None:
    stub = stub_of(open_house)
    for call in (
        stub.ModelMetadata(pb.ModelMetadataRequest(name=TURBO)),
        stub.ModelConfig(pb.ModelConfigRequest(name=TURBO)),
        stub.ModelInfer(infer_request(model_name=TURBO)),
    ):
        error = await status_of(call)
        assert error.code() is Status.UNIMPLEMENTED
        assert "ask that, with the parameter adapter=turbo" in str(error.details())


async def test_only_where_the_settings_say_so(house: House) -> None:
    for call in (load(house, LATE), unload(house, TURBO)):
        error = await status_of(call)
        assert error.code() is Status.UNIMPLEMENTED
        assert "gateway.remote_model_control says whether they may" in str(error.details())
    assert house.batcher.model
    assert house.batcher.model.adapters == ("turbo",)
    extensions = (await stub_of(house).ServerMetadata(pb.ServerMetadataRequest())).extensions
    assert "model_repository" not in extensions


async def test_the_extension_is_named_where_it_is_enabled(open_house: House) -> None:
    extensions = (await stub_of(open_house).ServerMetadata(pb.ServerMetadataRequest())).extensions
    assert "model_repository" in extensions
    assert await is_ready(open_house, TURBO)
    open_house.gateway.service.drain()
    assert not await is_ready(open_house, TURBO)
    assert {state for state, _ in (await index(open_house)).values()} == {"UNAVAILABLE"}


async def test_a_batcher_that_is_away(open_house: House) -> None:
    await open_house.batcher.stop()
    error = await status_of(load(open_house, LATE))
    assert (error.code(), "cannot be reached" in str(error.details())) == (Status.UNAVAILABLE, True)
