"""docs/compatibility.md names every call and field of the protocol, and what it says of them is so."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_house import House, eventually, opened, status_of
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from oip_requests import infer_request, stub_of, told

from steploom_gateway.oip.regions import DIRECTORY
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import model_config_pb2 as config_pb

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "compatibility.md").read_text()
STATUSES = {"supported", "different", "not applicable"}
NAME = re.compile(r"`(\w+)`")
FILES = (pb.DESCRIPTOR, config_pb.DESCRIPTOR)


def rows(heading: str, part: str = "") -> Iterator[list[str]]:
    """The cells of the tables below a heading; of those whose first row begins with `part`, if given."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        lines = table.splitlines()
        if lines[0].startswith(f"| {part}"):
            yield from ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:])


def table_of_fields() -> dict[str, str]:
    """Status of each field, by message and name."""
    found: list[tuple[str, str]] = []
    for heading in ("Fields of the protocol", "Fields of a model's configuration"):
        for message, fields, status, *_ in rows(heading):
            found += [(f"{message}.{name}", status) for name in NAME.findall(fields)]
    assert [name for name, count in Counter(name for name, _ in found).items() if count > 1] == []
    return dict(found)


def messages(among: Any) -> Iterator[Descriptor]:
    """All of them, nested ones too; maps are no messages of their own."""
    for message in among:
        if not message.GetOptions().map_entry:
            yield message
            yield from messages(message.nested_types)


def name_of(field: FieldDescriptor) -> str:
    assert field.containing_type
    return f"{field.containing_type.full_name.removeprefix('inference.')}.{field.name}"


def test_every_call_is_in_the_table() -> None:
    calls = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    table = [(NAME.findall(call)[0], status) for call, status, *_ in rows("Calls")]
    assert sorted(call for call, _ in table) == sorted(calls)
    assert {status for _, status in table} <= STATUSES


def test_every_field_is_in_the_table() -> None:
    table = table_of_fields()
    fields = {
        name_of(field) for file in FILES for message in messages(file.message_types_by_name.values())
        for field in message.fields
    }  # fmt: skip
    assert len(fields) > 250
    assert (fields - table.keys(), table.keys() - fields) == (set(), set())
    assert set(table.values()) <= STATUSES


def test_every_setting_of_batching_is_in_the_table_of_plain_models() -> None:
    found = [
        (f"{message}.{name}", status)
        for message, fields, status, *_ in rows("Batching of plain models")
        for name in NAME.findall(fields)
    ]
    assert {status for _, status in found} <= STATUSES
    names = Counter(name for name, _ in found)
    assert set(names.values()) == {1}
    for message in (config_pb.ModelDynamicBatching, config_pb.ModelQueuePolicy):
        name = message.DESCRIPTOR.name
        assert {f"{name}.{field.name}" for field in message.DESCRIPTOR.fields} == {
            known for known in names if known.startswith(f"{name}.")
        }


def test_settings_that_are_named_exist() -> None:
    reference = (ROOT / "docs" / "configuration.md").read_text()
    named = re.findall(r"`(gateway|batcher|worker|up|plain)\.([a-z0-9_]+)`", PAGE)
    assert len(named) > 8
    tables = dict(re.findall(r"^## `\[(\w+)\]`(.*?)(?=^## |\Z)", reference, re.MULTILINE | re.DOTALL))
    assert [f"{table}.{key}" for table, key in named if f"`{key}`" not in tables[table] and key != "tiers"] == []


async def test_parameters_of_a_request(house: House) -> None:
    error = await status_of(stub_of(house).ModelInfer(infer_request(nonsense=1)))
    taken = str(error.details()).partition("there are: ")[2].split(", ")
    table = [
        name for cell, *_ in rows("The pipeline as models", "parameter of a request") for name in NAME.findall(cell)
    ]
    assert sorted(table) == sorted(taken)


def fields_set(message: Message) -> Iterator[FieldDescriptor]:
    """What an answer has, at any depth."""
    for field, value in message.ListFields():
        yield field
        if field.message_type is None:
            continue
        parts: Any = value if field.is_repeated else [value]
        if field.message_type.GetOptions().map_entry:
            parts = value.values()
        for part in parts:
            if isinstance(part, Message):
                yield from fields_set(part)


async def all_sorts_of_answers(house: House, memory: Path) -> list[Message]:
    """One of each at least."""
    stub = stub_of(house)
    place = pb.SystemSharedMemoryRegisterRequest(name="o", key=f"/{memory.name}", offset=8, byte_size=2**16)
    await stub.SystemSharedMemoryRegister(place)
    into_memory = infer_request(
        seed="18446744073709551615", outputs=[pb.ModelInferRequest.InferRequestedOutputTensor()]
    )
    into_memory.outputs[0].name = "edited_image"
    into_memory.outputs[0].parameters["shared_memory_region"].string_param = "o"
    into_memory.outputs[0].parameters["shared_memory_byte_size"].int64_param = 2**16

    async def asked() -> AsyncIterator[pb.ModelInferRequest]:
        yield infer_request(request_id="a", preview_every=1)
        yield infer_request(request_id="b", model_name="other")

    streamed = [answer async for answer in stub.ModelStreamInfer(asked())]
    found: list[Message] = [
        *streamed,
        await stub.ModelInfer(into_memory),
        await stub.ModelInfer(infer_request(request_id="c")),
        await stub.ServerLive(pb.ServerLiveRequest()),
        await stub.ServerReady(pb.ServerReadyRequest()),
        await stub.ModelReady(pb.ModelReadyRequest(name="fake")),
        await stub.ServerMetadata(pb.ServerMetadataRequest()),
        *[await stub.ModelMetadata(pb.ModelMetadataRequest(name=name)) for name in ("fake", "fake.encode")],
        *[await stub.ModelConfig(pb.ModelConfigRequest(name=name)) for name in ("fake", "fake.denoise")],
        await stub.ModelStatistics(pb.ModelStatisticsRequest()),
        await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()),
        await stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()),
        await stub.TraceSetting(pb.TraceSettingRequest()),
        await stub.LogSettings(pb.LogSettingsRequest()),
    ]
    house.batcher.is_worker_up = False
    assert await eventually(lambda: not house.gateway.service.is_ready)
    return [*found, await stub.RepositoryIndex(pb.RepositoryIndexRequest())]


@pytest.mark.skipif(not os.access(DIRECTORY, os.W_OK), reason=f"{DIRECTORY} cannot be written")
async def test_answers_have_what_the_table_says_and_nothing_else(tmp_path: Path) -> None:
    memory = DIRECTORY / f"steploom-test-{os.getpid()}-compatibility"
    memory.write_bytes(bytes(2**17))
    try:
        async with opened(tmp_path, shared_memory_regions=1) as house:
            answers = await all_sorts_of_answers(house, memory)
    finally:
        memory.unlink()
    table = table_of_fields()
    seen = {name_of(field) for answer in answers for field in fields_set(answer)}
    assert [name for name in sorted(seen) if table[name] == "not applicable"] == []
    # what only requests have, or is without a value here, cannot be seen in an answer
    asked = re.compile(r"\w+Request\b|InferTensorContents")
    unseen = [name for name, status in table.items() if status == "supported" and not asked.match(name)]
    assert [name for name in unseen if name not in seen] == []
    facts = {name for answer in answers if isinstance(answer, pb.ModelInferResponse) for name in told(answer)}
    facts |= {
        name
        for answer in answers
        if isinstance(answer, pb.ModelStreamInferResponse)
        for name in told(answer.infer_response)
    }
    told_of = {
        name for cell, *_ in rows("The pipeline as models", "parameter of an answer") for name in NAME.findall(cell)
    }
    assert facts == told_of
