"""The logs of a real run: a JSON object a line, one request's ids in all services, and no secret in any."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from steploom.aio import Client
from steploom.errors import InvalidArgument, SteploomError, Unauthenticated
from steploom.types import EditResult
from steploom_gateway.tokens import TokenConfig, add_token, make_token
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables
from steploom_protos.v1 import image_pb2, image_pb2_grpc

SECRET = "Wohlgemuth-4711 in her blue dress"  # a person's name has no place in a log
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NOT_OURS = "Zwiebelkuchen-0815"  # a token of somewhere else
PATIENCE_S = 120.0


async def test_json_lines_tell_one_request_by_its_ids_and_no_secret(
    tmp_path: Any, start_stack: Callable[[Tables], Stack]
) -> None:
    token, hashed = make_token("web")
    add_token(tmp_path / "tokens.toml", "web", TokenConfig(hash=hashed))
    tables = {
        "log": {"format": "json", "level": "debug"},
        "gateway": {"tokens": str(tmp_path / "tokens.toml")},
        "worker": {"engine": "fake"},
        "up": {"min_backoff_s": 0.1, "max_backoff_s": 0.2},
    }
    stack = await asyncio.to_thread(start_stack, tables)
    failures = await asyncio.to_thread(ask_within_a_trace, stack.gateway, token)
    assert failures["traced"] == grpc.StatusCode.OK
    async with Client(stack.gateway, token=token) as client:
        assert isinstance(await client.edit(portrait(), SECRET, steps=3, timeout=PATIENCE_S), EditResult)
        for word in ("poison", "overflow", "exhaust"):  # the model fails, a job fails alone, and workers end
            with pytest.raises(SteploomError) as failure:
                await client.edit(portrait(), f"{word} {SECRET}", steps=3, timeout=PATIENCE_S)
            assert failure.value.status.name == "INTERNAL"
        with pytest.raises(InvalidArgument):
            await client.edit(portrait(), SECRET * 100, timeout=PATIENCE_S)
        with pytest.raises(InvalidArgument):
            await client.edit(SECRET.encode(), SECRET, timeout=PATIENCE_S)
        error_id = failure.value.args[0].rpartition(" ")[2]
    async with Client(stack.gateway, token=NOT_OURS) as stranger:
        with pytest.raises(Unauthenticated):
            await stranger.edit(portrait(), SECRET, timeout=PATIENCE_S)
    await asyncio.to_thread(stack.stop)

    said = stack.log
    for secret in (SECRET, "Wohlgemuth", token, token.rpartition("_")[2], NOT_OURS, hashed):
        assert secret not in said
    broken = [line for line in said.splitlines() if not line.startswith("{")]
    assert not broken
    lines = [json.loads(line) for line in said.splitlines()]
    assert {line["service"] for line in lines} == {"up", "gateway", "batcher", "worker-0"}
    assert {"time", "level", "message", "logger"} <= set.intersection(*(set(line) for line in lines))
    assert [line for line in lines if line["logger"] == "stderr"] == []  # nothing was written beside the logs

    (access,) = [line for line in lines if line.get("request_id") == "traced" and line["service"] == "gateway"]
    assert access["message"].startswith("Edit request_id=traced tier=pro status=OK ms=")
    expected = {"method": "Edit", "tier": "pro", "status": "OK", "token": "web", "trace_id": TRACE, "span_id": SPAN}
    assert {name: access[name] for name in expected} == expected
    assert access["ms"] > 0
    for service, first, last in [("batcher", "is admitted", "has ended: with a picture"), ("worker-0", "slot", "slot")]:
        mine = [line for line in lines if line.get("request_id") == "traced" and line["service"] == service]
        assert first in mine[0]["message"]
        assert last in mine[-1]["message"]
        assert {(line["trace_id"], line["job_id"].rpartition("/")[0]) for line in mine} == {(TRACE, "traced")}

    (cause,) = [line for line in lines if line.get("error_id") == error_id]
    assert (cause["service"], cause["level"]) == ("batcher", "ERROR")
    assert [line for line in lines if line.get("cause") == "unauthenticated" and line["status"] == "UNAUTHENTICATED"]


def ask_within_a_trace(gateway: str, token: str) -> dict[str, grpc.StatusCode]:
    """A call within a trace."""
    request = image_pb2.EditRequest(
        image=image_pb2.Image(encoded=portrait()), instruction=SECRET, steps=3, tier="pro", request_id="traced"
    )
    metadata = (("authorization", f"Bearer {token}"), ("traceparent", f"00-{TRACE}-{SPAN}-01"))
    with grpc.insecure_channel(gateway) as channel:
        call = image_pb2_grpc.ImageServiceStub(channel).Edit.with_call
        _, done = call(request, metadata=metadata, timeout=PATIENCE_S, wait_for_ready=True)
        return {"traced": done.code()}
