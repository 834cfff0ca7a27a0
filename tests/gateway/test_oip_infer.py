"""ModelInfer: the same edits as ImageService, by the names of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from gateway_house import House, decoded, eventually, opened, picture, request, status_of
from google.rpc import error_details_pb2, status_pb2
from oip_requests import Input, Output, bytes_of, infer_request, parameters, raw_request, stub_of, told
from PIL import Image

from steploom_common.errors import DeadlineMissed, QueueFull
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.v1 import image_pb2

Status = grpc.StatusCode


async def test_a_picture_in_and_a_picture_out(house: House) -> None:
    sent = picture(seed=1)
    answer = await stub_of(house).ModelInfer(infer_request(sent, request_id="mine", tier="free", seed=7))
    assert np.array_equal(decoded(bytes_of(answer)), 255 - sent)
    assert (answer.model_name, answer.model_version, answer.id) == ("fake", "1", "mine")
    facts = told(answer)
    assert (facts["tier"], facts["seed"], facts["request_id"], facts["output_format"]) == ("free", 7, "mine", "png")
    assert (facts["height"], facts["width"], facts["ticks"], facts["queue_s"]) == (32, 32, 4, 0.01)
    job = house.batcher.requests[-1]
    assert (job.tier, job.seed, job.without_progress, job.instruction) == ("free", 7, True, "make the hair blond")
    assert await house.is_clean()


async def test_all_parameters_reach_the_job(house: House) -> None:
    wanted: dict[str, Any] = {
        "tier": "free", "adapter": "turbo", "steps": 3, "seed": 2**63 - 1, "guidance_scale": 4, "sampler": "euler",
        "image_guidance_scale": 1.5, "output_format": "webp", "size_rule": "stretch",
    }  # fmt: skip
    answer = await stub_of(house).ModelInfer(infer_request(picture(50, 100), **wanted))
    job = house.batcher.requests[-1]
    assert (job.tier, job.adapter, job.steps, job.seed) == ("free", "turbo", 3, 2**63 - 1)
    assert (job.guidance_scale, job.image_guidance_scale, job.sampler) == (4.0, 1.5, image_pb2.SAMPLER_EULER)
    drawn = Image.open(io.BytesIO(bytes_of(answer)))
    assert (drawn.format, drawn.size, told(answer)["output_format"]) == ("WEBP", (100, 50), "webp")


async def test_absent_parameters_are_left_to_the_batcher(house: House) -> None:
    await stub_of(house).ModelInfer(infer_request())
    job = house.batcher.requests[-1]
    assert (job.steps, job.guidance_scale, job.image_guidance_scale, job.sampler) == (0, 0.0, 0.0, 0)
    assert (job.tier, job.adapter, job.deadline_unix_s) == ("", "", 0.0)


@pytest.mark.parametrize(("level", "tier"), [(1, "pro"), (2, "free"), (0, ""), (3, ""), (2**64 - 1, "")])
async def test_priorities_are_tiers_by_weight(house: House, level: int, tier: str) -> None:
    await stub_of(house).ModelInfer(infer_request(priority=pb.InferParameter(uint64_param=level)))
    assert house.batcher.requests[-1].tier == tier


async def test_a_tier_that_is_named_goes_before_a_priority(house: House) -> None:
    await stub_of(house).ModelInfer(infer_request(priority=1, tier="free"))
    assert house.batcher.requests[-1].tier == "free"


@pytest.mark.parametrize("seed", ["18446744073709551615", pb.InferParameter(uint64_param=2**64 - 1)])
async def test_seeds_that_int64_cannot_hold(house: House, seed: Any) -> None:
    answer = await stub_of(house).ModelInfer(infer_request(seed=seed))
    assert house.batcher.requests[-1].seed == told(answer)["seed"] == 2**64 - 1


async def test_the_timeout_is_a_deadline_in_microseconds(house: House) -> None:
    start = time.time()
    await stub_of(house).ModelInfer(infer_request(timeout=40_000_000), timeout=600)
    assert start + 40 <= house.batcher.requests[-1].deadline_unix_s <= time.time() + 40
    await stub_of(house).ModelInfer(infer_request(timeout=600_000_000), timeout=60)
    assert house.batcher.requests[-1].deadline_unix_s < time.time() + 62
    await stub_of(house).ModelInfer(infer_request(timeout=0))
    assert house.batcher.requests[-1].deadline_unix_s == 0


async def test_raw_pixels_in_and_out(house: House) -> None:
    sent = picture(seed=4)
    answer = await stub_of(house).ModelInfer(raw_request(sent))
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("edited_image", "UINT8", [32, 32, 3])
    assert answer.raw_output_contents[0] == (255 - sent).tobytes()
    answer = await stub_of(house).ModelInfer(raw_request(sent, output_format="png"))
    assert np.array_equal(decoded(bytes_of(answer)), 255 - sent)
    answer = await stub_of(house).ModelInfer(infer_request(sent, output_format="raw"))
    assert answer.raw_output_contents[0] == (255 - sent).tobytes()


@pytest.mark.parametrize("is_raw", [False, True])
async def test_typed_contents_say_the_same(house: House, is_raw: bool) -> None:
    sent = picture(seed=5)
    asked = raw_request(sent) if is_raw else infer_request(sent)
    data = [asked.raw_input_contents[0], asked.raw_input_contents[1][4:]]
    del asked.raw_input_contents[:]
    if is_raw:
        asked.inputs[0].contents.uint_contents.extend(data[0])
    else:
        asked.inputs[0].contents.bytes_contents.append(data[0][4:])
    asked.inputs[1].contents.bytes_contents.append(data[1])
    answer = await stub_of(house).ModelInfer(asked)
    drawn = answer.raw_output_contents[0] if is_raw else decoded(bytes_of(answer)).tobytes()
    assert drawn == (255 - sent).tobytes()
    assert house.batcher.requests[-1].instruction == "make the hair blond"


async def test_only_outputs_that_are_asked_for_are_sent(house: House) -> None:
    answer = await stub_of(house).ModelInfer(infer_request(outputs=[Output(name="preview")]))
    assert not answer.outputs
    answer = await stub_of(house).ModelInfer(infer_request(outputs=[Output(name="edited_image")]))
    assert [output.name for output in answer.outputs] == ["edited_image"]


def changed(**fields: Any) -> pb.ModelInferRequest:
    """A good request but for one input: `image` or `instruction`."""
    asked = infer_request()
    for index, name in enumerate(("image", "instruction")):
        if name in fields:
            asked.inputs[index].MergeFrom(fields[name])
    return asked


def without_raw(asked: pb.ModelInferRequest) -> pb.ModelInferRequest:
    del asked.raw_input_contents[:]
    return asked


def with_raw(index: int, data: bytes) -> pb.ModelInferRequest:
    asked = infer_request()
    asked.raw_input_contents[index] = data
    return asked


def with_shape(*shape: int, datatype: str = "UINT8") -> pb.ModelInferRequest:
    asked = raw_request(picture())
    asked.inputs[0].shape[:] = shape
    asked.inputs[0].datatype = datatype
    return asked


def with_typed(datatype: str, shape: list[int], **contents: Any) -> pb.ModelInferRequest:
    asked = without_raw(infer_request())
    asked.inputs[0].CopyFrom(
        Input(name="image", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents))
    )
    asked.inputs[1].contents.bytes_contents.append(b"words")
    return asked


BAD = {
    "both forms": (changed(image=Input(contents=pb.InferTensorContents(bytes_contents=[b"x"]))),
                   "inputs.image", "has `contents` where there are raw_input_contents"),
    "neither form": (without_raw(infer_request()), "inputs.image", "has no data"),
    "too few raw": (pb.ModelInferRequest(model_name="fake", inputs=infer_request().inputs, raw_input_contents=[b""]),
                    "raw_input_contents", "has 1 entries, must have 2"),
    "no inputs": (pb.ModelInferRequest(model_name="fake"), "inputs.instruction", "is missing"),
    "unknown input": (changed(image=Input(name="mask")), "inputs.mask", "does not exist; there are: image"),
    "twice": (changed(instruction=Input(name="image")), "inputs.image", "comes twice"),
    "datatype": (changed(image=Input(datatype="FP32")), "inputs.image", "is FP32, must be BYTES or UINT8"),
    "instruction's datatype": (changed(instruction=Input(datatype="UINT8")), "inputs.instruction", "must be BYTES"),
    "rank": (with_shape(32, 32), "inputs.image", "has shape [32, 32], must have [-1, -1, 3] as UINT8"),
    "channels": (with_shape(32, 32, 4), "inputs.image", "has shape [32, 32, 4]"),
    "negative": (with_shape(-1, 32, 3), "inputs.image", "has shape [-1, 32, 3]"),
    "huge": (with_shape(2**40, 32, 3), "inputs.image", "must have [-1, -1, 3]"),
    "too high": (with_shape(5000, 1, 3), "inputs.image", "must be at most 4096"),
    "too few bytes": (with_shape(32, 33, 3), "inputs.image", "has 3072 bytes, must have height * width * 3 = 3168"),
    "shape of BYTES": (with_shape(2, datatype="BYTES"), "inputs.image", "has shape [2], must have [1] as BYTES"),
    "no length": (with_raw(0, b"abc"), "inputs.image", "has 3 bytes, must have its length"),
    "short": (with_raw(0, b"\x09\0\0\0abc"), "inputs.image", "which says that there are 9"),
    "long": (with_raw(0, b"\x01\0\0\0abc"), "inputs.image", "which says that there are 1"),
    "no picture": (with_raw(0, b"\x03\0\0\0abc"), "inputs.image", "must be PNG, JPEG or WebP"),
    "empty picture": (with_raw(0, b"\0\0\0\0"), "inputs.image", "is empty"),
    "no UTF-8": (with_raw(1, b"\x02\0\0\0\xff\xfe"), "inputs.instruction", "is no UTF-8 from byte 0 on"),
    "empty words": (infer_request(instruction=" "), "inputs.instruction", "is empty"),
    "too many words": (infer_request(instruction="x" * 501), "inputs.instruction", "must have at most 500"),
    "wrong typed field": (with_typed("BYTES", [1], fp32_contents=[1.0]), "inputs.image", "must have bytes_contents"),
    "two elements": (with_typed("BYTES", [1], bytes_contents=[b"a", b"b"]), "inputs.image", "has 2 elements"),
    "above 255": (with_typed("UINT8", [1, 1, 3], uint_contents=[1, 2, 256]), "inputs.image", "above 255"),
    "steps": (infer_request(steps=0), "parameters.steps", "is 0, must be at least 1 and at most 50"),
    "negative steps": (infer_request(steps=-1), "parameters.steps", "is -1, must be a whole number"),
    "words for steps": (infer_request(steps="many"), "parameters.steps", "is 'many', must be a whole number"),
    "scale": (infer_request(guidance_scale=31.0), "parameters.guidance_scale", "must be at least 1 and at most 30"),
    "no scale": (infer_request(guidance_scale=True), "parameters.guidance_scale", "is True, must be a number"),
    "sampler": (infer_request(sampler="heun"), "parameters.sampler", "must be one of ddim, euler, dpmpp_2m"),
    "format": (infer_request(output_format="gif"), "parameters.output_format", "must be one of png, jpeg, webp, raw"),
    "negative timeout": (infer_request(timeout=-1), "parameters.timeout", "is -1"),
    "tier": (infer_request(tier=1), "parameters.tier", "is 1, must be a string"),
    "unknown parameter": (infer_request(step=3), "parameters.step", "does not exist; there are: adapter"),
    "sequence": (infer_request(sequence_id=3), "parameters.sequence_id", "does not exist"),
    "no value": (infer_request(steps=pb.InferParameter()), "parameters.steps", "has no value"),
    "id": (infer_request(request_id="a b"), "id", "must be at most 64 characters"),
    "unknown output": (infer_request(outputs=[Output(name="mask")]), "outputs.mask", "does not exist"),
    "output twice": (infer_request(outputs=[Output(name="preview")] * 2), "outputs.preview", "comes twice"),
    "classes": (infer_request(outputs=[Output(name="edited_image", parameters=parameters({"classification": 3}))]),
                "outputs.edited_image.parameters.classification", "does not exist"),
}  # fmt: skip


async def test_a_flood_of_faults_is_told_in_few_words(house: House) -> None:
    many: dict[str, Any] = {f"p{n}": 1 for n in range(10_000)}
    for asked, field in (
        (infer_request(outputs=[Output(name=f"o{n}") for n in range(100_000)]), "outputs"),
        (infer_request(**many), "parameters"),
        (pb.ModelInferRequest(model_name="fake", inputs=[Input(name="x" * 500)] * 1000), "inputs"),
        (pb.ModelInferRequest(model_name="fake", raw_input_contents=[b""] * 1000), "raw_input_contents"),
    ):
        error = await status_of(stub_of(house).ModelInfer(asked))
        assert error.code() is Status.INVALID_ARGUMENT
        assert re.match(rf"{field}: has \d+ entries", str(error.details()))
    eight = [Input(name=f"{n}" * 500) for n in range(8)]
    values: dict[str, Any] = {f"{n}" * 500: n for n in range(8)}
    asked = infer_request(outputs=[Output(name=f"{n}" * 500) for n in range(8)], **values)
    asked.inputs.extend(eight[:6])
    del asked.raw_input_contents[:]
    error = await status_of(stub_of(house).ModelInfer(asked))
    assert error.code() is Status.INVALID_ARGUMENT
    trailers: Any = dict(error.trailing_metadata() or ())
    # base64 on the wire; clients take 8 KiB of metadata
    assert len(str(error.details())) + 4 / 3 * len(trailers["grpc-status-details-bin"]) < 7000


@pytest.mark.parametrize("case", BAD)
async def test_what_is_wrong_is_named(house: House, case: str) -> None:
    asked, field, problem = BAD[case]
    error = await status_of(stub_of(house).ModelInfer(asked))
    assert error.code() is Status.INVALID_ARGUMENT
    trailers: Any = dict(error.trailing_metadata() or ())
    detail = error_details_pb2.BadRequest()
    assert status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(detail)
    found = {row.field: row.description for row in detail.field_violations}
    assert problem in found[field], found
    assert not house.batcher.requests
    assert await house.is_clean()


async def test_all_that_is_wrong_is_named_at_once(house: House) -> None:
    error = await status_of(stub_of(house).ModelInfer(infer_request(steps="x", tier=3, sampler="y")))
    assert all(f"parameters.{name}: " in str(error.details()) for name in ("steps", "tier", "sampler"))
    error = await status_of(stub_of(house).ModelInfer(infer_request(instruction="", steps=1000, guidance_scale=99)))
    for name in ("inputs.instruction", "parameters.steps", "parameters.guidance_scale"):
        assert f"{name}: " in str(error.details())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (infer_request(model_name="other"), "model 'other' does not exist"),
        (infer_request(model_name=""), "model '' does not exist"),
        (pb.ModelInferRequest(model_name="fake", model_version="2"), "version of fake '2' does not exist; there is: 1"),
        (infer_request(tier="gold"), "tier 'gold' does not exist"),
        (infer_request(adapter="nobody"), "adapter 'nobody' does not exist"),
    ],
)
async def test_unknown_names(house: House, asked: pb.ModelInferRequest, words: str) -> None:
    error = await status_of(stub_of(house).ModelInfer(asked))
    assert error.code() is Status.NOT_FOUND
    assert words in str(error.details())


async def test_a_step_of_the_pipeline_cannot_be_asked_alone(house: House) -> None:
    error = await status_of(stub_of(house).ModelInfer(infer_request(model_name="fake.denoise")))
    assert error.code() is Status.UNIMPLEMENTED
    assert "is a step of fake" in str(error.details())


async def test_refusals_have_the_words_that_clients_of_triton_look_for(tmp_path: Any) -> None:
    async with opened(tmp_path, max_calls=1) as house:
        house.batcher.play(hold_at="started")
        held = house.stub.Edit(request())
        await house.batcher.reached.wait()
        error = await status_of(stub_of(house).ModelInfer(infer_request()))
        assert error.code() is Status.RESOURCE_EXHAUSTED
        assert str(error.details()).startswith("Exceeds maximum queue size: ")
        house.batcher.resume.set()
        await held
        for refusal, status in (
            (QueueFull("9 wait", "tier:free", 1.0), Status.RESOURCE_EXHAUSTED),
            (DeadlineMissed("no chance", 2.5), Status.DEADLINE_EXCEEDED),
        ):
            house.batcher.play(refuse=refusal)
            error = await status_of(stub_of(house).ModelInfer(infer_request()))
            assert (error.code(), error.details()) == (status, str(refusal))


async def test_a_call_that_is_cancelled_frees_its_job(house: House) -> None:
    house.batcher.play(hold_at="stepped")
    call = stub_of(house).ModelInfer(infer_request())
    await house.batcher.reached.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await eventually(lambda: house.batcher.num_cancelled == 1)
    assert await house.is_clean()


async def test_calls_are_counted_by_their_own_names(house: House) -> None:
    async def asked() -> AsyncIterator[pb.ModelInferRequest]:
        yield infer_request(tier="free")

    await stub_of(house).ModelInfer(infer_request(tier="free"))
    await status_of(stub_of(house).ModelInfer(infer_request(steps="many")))
    assert [answer async for answer in stub_of(house).ModelStreamInfer(asked())]
    assert await house.is_clean()

    def count(method: str, tier: str, status: str) -> float | None:
        labels = {"method": method, "tier": tier, "status": status}
        return house.gateway.metrics.registry.get_sample_value("steploom_gateway_requests_total", labels)

    assert count("ModelInfer", "free", "OK") == 1
    assert count("ModelInfer", "-", "INVALID_ARGUMENT") == 1
    assert count("ModelStreamInfer", "free", "OK") == 1
