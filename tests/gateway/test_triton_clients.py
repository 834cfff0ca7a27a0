"""Triton's own clients, unmodified, against a running gateway: the Python client in all its forms, and perf_analyzer.

They live in an environment of their own, which is made at the first run; where that cannot be, these tests are skipped.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gateway_house import House, decoded, encoded, eventually, opened, picture
from google.protobuf import descriptor_pb2, json_format

from steploom_gateway.oip.regions import DIRECTORY
from steploom_protos.inference import grpc_service_pb2, model_config_pb2

ROOT = Path(__file__).resolve().parents[2]
CALLS = ROOT / "tests" / "support" / "triton_calls.py"

SENT = picture(seed=6)
DRAWN = 255 - SENT

Found = Mapping[str, str]


@pytest.fixture(scope="session")
def clients() -> Found:
    """What there is of the environment; see tools/triton_clients.py."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "triton_clients.py")],
        capture_output=True, text=True, timeout=1200, check=True,
    )  # fmt: skip
    found: Found = json.loads(done.stdout)
    if "python" not in found:
        pytest.skip(f"no environment of Triton's clients: {found['missing']}")
    return found


async def client(house: House, found: Found, command: str, data: bytes, folder: Path) -> asyncio.subprocess.Process:
    """Triton's client at work."""
    (folder / "picture").write_bytes(data)
    return await asyncio.create_subprocess_exec(
        found["python"], str(CALLS), command, f"127.0.0.1:{house.gateway.port}", str(folder / "picture"),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
    )  # fmt: skip


async def calls(house: House, found: Found, command: str, folder: Path, data: bytes = b"") -> dict[str, Any]:
    """What came of a command."""
    process = await client(house, found, command, data or encoded(SENT), folder)
    out, _ = await process.communicate()
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(out)
    return result


def shows(data: str) -> bool:
    """Whether this is the picture that was asked for."""
    return np.array_equal(decoded(base64.b64decode(data)), DRAWN)


async def test_the_client_reads_all_that_is_told(house: House, clients: Found, tmp_path: Path) -> None:
    got = await calls(house, clients, "info", tmp_path)
    assert (got["live"], got["ready"], got["model_ready"]) == (True, True, True)
    assert (got["server"]["name"], got["model"]["platform"]) == ("steploom", "ensemble")
    assert len(got["config"]["config"]["ensemble_scheduling"]["step"]) == 3
    assert [row["name"] for row in got["statistics"]["model_stats"]][:2] == ["fake", "fake.encode"]
    assert {row["state"] for row in got["index"]["models"]} == {"READY"}
    assert got["traces"]["settings"]["trace_level"]["value"] == ["OFF"]
    assert "log_info" in got["logs"]["settings"]
    assert got["load"][0] == "StatusCode.UNIMPLEMENTED"
    assert got["cuda"] == {}


async def test_the_client_loads_and_unloads(tmp_path: Path, clients: Found) -> None:
    async with opened(tmp_path, remote_model_control=True) as house:
        got = await calls(house, clients, "repository", tmp_path)
    assert got["loaded"] == ["READY", True]
    assert got["unloaded"] == ["UNAVAILABLE", False]
    assert got["pipeline"][0] == "StatusCode.FAILED_PRECONDITION"
    assert got["unknown"][0] == "StatusCode.NOT_FOUND"
    assert got["config"][0] == "StatusCode.UNIMPLEMENTED"


async def test_the_blocking_client(house: House, clients: Found, tmp_path: Path) -> None:
    got = await calls(house, clients, "sync", tmp_path)
    assert shows(got["picture"])
    assert shows(got["later"])
    assert got["later_error"] is None
    assert (base64.b64decode(got["raw"]), got["raw_shape"]) == (DRAWN.tobytes(), [32, 32, 3])
    assert (got["id"], got["facts"]["seed"], got["facts"]["tier"]) == ("r1", 7, "free")
    first = house.batcher.requests[0]
    assert (first.steps, first.guidance_scale, first.deadline_unix_s > 0) == (3, 2.5, True)
    assert got["bad"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "parameters.steps: is 0, must be at least 1" in got["bad"][1]
    assert got["unknown"][0] == "StatusCode.NOT_FOUND"
    assert await house.is_clean()


async def test_the_example_of_the_page(house: House, clients: Found, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    for theirs, ours in (("127.0.0.1:8001", f"127.0.0.1:{house.gateway.port}"), ('"avatar-edit"', '"fake"')):
        assert theirs in example
        example = example.replace(theirs, ours)
    (tmp_path / "portrait.png").write_bytes(encoded(SENT))
    process = await asyncio.create_subprocess_exec(clients["python"], "-c", example, cwd=tmp_path)
    assert await process.wait() == 0
    assert np.array_equal(decoded((tmp_path / "out.png").read_bytes()), DRAWN)
    job = house.batcher.requests[-1]
    assert (job.instruction, job.seed, job.guidance_scale, job.tier) == ("put on sunglasses", 7, 4.0, "free")


async def test_raw_pixels(house: House, clients: Found, tmp_path: Path) -> None:
    got = await calls(house, clients, "raw", tmp_path, SENT.tobytes())
    assert base64.b64decode(got["raw"]) == DRAWN.tobytes()


async def test_the_client_for_asyncio(house: House, clients: Found, tmp_path: Path) -> None:
    got = await calls(house, clients, "aio", tmp_path)
    assert shows(got["picture"])
    assert got["tier"] == "free"
    assert got["finals"] == [False] * 4 + [True]
    assert ["model 'other' does not exist" in error for error in got["errors"]] == [True]


async def test_streams_of_the_client(house: House, clients: Found, tmp_path: Path) -> None:
    got = await calls(house, clients, "stream", tmp_path)
    for rows in got["answers"].values():
        assert [row.get("event") for row in rows] == ["queued", "started", "step", "step", "step", None]
        assert [row["triton_final_response"] for row in rows] == [False] * 5 + [True]
    assert [shows(data) for data in got["pictures"]] == [True, True]
    assert got["previews"] == 6
    assert "model 'other' does not exist" in got["error"]
    assert await house.is_clean()


async def test_calls_and_streams_that_the_client_cancels(house: House, clients: Found, tmp_path: Path) -> None:
    house.batcher.play(hold_at="stepped")
    process = await client(house, clients, "cancel", encoded(SENT), tmp_path)
    assert process.stdout
    assert process.stdin
    for number in (1, 2):
        assert await process.stdout.readline() == b"sent\n"
        assert await eventually(lambda number=number: len(house.batcher.requests) == number)  # type: ignore[misc]
        assert await eventually(lambda: house.batcher.num_held == 1)
        process.stdin.write(b"\n")
        assert await eventually(lambda number=number: house.batcher.num_cancelled == number)  # type: ignore[misc]
    assert await house.is_clean()
    out, _ = await process.communicate()
    assert json.loads(out)["statuses"] == ["StatusCode.CANCELLED"] * 2


@pytest.mark.skipif(not os.access(DIRECTORY, os.W_OK), reason=f"{DIRECTORY} cannot be written")
async def test_shared_memory_of_the_client(clients: Found, tmp_path: Path) -> None:
    async with opened(tmp_path, shared_memory_regions=4) as house:
        got = await calls(house, clients, "shared", tmp_path)
        assert shows(got["picture"])
        assert set(got["status"]["regions"]) == {"in", "out"}
        assert got["left"] == {}


def fields(file: descriptor_pb2.FileDescriptorProto) -> dict[str, tuple[Any, ...]]:
    """Everything that the wire depends on, by full name."""
    found: dict[str, tuple[Any, ...]] = {}

    def walk(message: descriptor_pb2.DescriptorProto, path: str) -> None:
        for field in message.field:
            choice = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            found[f"{path}.{field.name}"] = (field.number, field.type, field.label, field.type_name, choice)
        for nested in message.nested_type:
            walk(nested, f"{path}.{nested.name}")
        for enum in message.enum_type:
            found[f"{path}.{enum.name}"] = tuple((value.name, value.number) for value in enum.value)

    for message in file.message_type:
        walk(message, message.name)
    for enum in file.enum_type:
        found[enum.name] = tuple((value.name, value.number) for value in enum.value)
    for service in file.service:
        for call in service.method:
            found[f"{service.name}.{call.name}"] = (
                call.input_type, call.output_type, call.client_streaming, call.server_streaming
            )  # fmt: skip
    return found


async def test_our_protocol_is_theirs_on_the_wire(house: House, clients: Found, tmp_path: Path) -> None:
    got = await calls(house, clients, "wire", tmp_path)
    for name, module in (("grpc_service.proto", grpc_service_pb2), ("model_config.proto", model_config_pb2)):
        theirs = json_format.ParseDict(got[name], descriptor_pb2.FileDescriptorProto())
        ours = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(ours)
        assert ours.package == theirs.package == "inference"
        assert fields(ours) == fields(theirs)
        assert len(fields(ours)) > 100


LOADS = {
    "closed": ["--concurrency-range", "2"],
    "poisson": ["--request-rate-range", "40", "--request-distribution", "poisson"],
    "stream": ["--concurrency-range", "2", "--streaming", "--async"],
    "shared": ["--concurrency-range", "2", "--shared-memory", "system", "--output-shared-memory-size", str(2**16)],
}


@pytest.mark.parametrize("load", LOADS)
async def test_perf_analyzer(clients: Found, tmp_path: Path, load: str) -> None:
    if "perf_analyzer" not in clients:
        pytest.skip(f"no perf_analyzer: {clients['missing']}")
    if load == "shared" and not os.access(DIRECTORY, os.W_OK):
        pytest.skip(f"{DIRECTORY} cannot be written")
    data = encoded(SENT)
    element = len(data).to_bytes(4, "little") + data  # as raw contents have it: that is what `b64` stands for
    rows = [{"image": {"b64": base64.b64encode(element).decode()}, "instruction": ["make the hair blond"]}]
    (tmp_path / "data.json").write_text(json.dumps({"data": rows}))
    async with opened(tmp_path, shared_memory_regions=64) as house:
        process = await asyncio.create_subprocess_exec(
            clients["perf_analyzer"], "-m", "fake", "-i", "grpc", "-u", f"127.0.0.1:{house.gateway.port}",
            "--input-data", str(tmp_path / "data.json"), "-f", str(tmp_path / "report.csv"),
            "--request-count", "40", "--measurement-interval", "1000", "--verbose-csv", *LOADS[load],
            env={**os.environ, "LD_LIBRARY_PATH": clients["library_path"]},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        said = out.decode()
        assert process.returncode == 0, said
        assert "Composing models" in said
        assert all(f"fake.{stage}" in said for stage in ("encode", "denoise", "decode"))
        assert "queue 10000 usec + compute 90000 usec" in said  # as the fake batcher tells them
        assert len(house.batcher.requests) >= 40
        assert await house.is_clean()
    with (tmp_path / "report.csv").open() as file:
        (report,) = csv.DictReader(line for line in file if line.strip())
    assert float(report["Inferences/Second"]) > 0
