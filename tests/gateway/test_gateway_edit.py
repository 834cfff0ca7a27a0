"""Edits that go well, over real sockets."""

from __future__ import annotations

import io
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from gateway_house import House, decoded, eventually, opened, picture, request
from PIL import Image

from steploom_protos.v1 import image_pb2


async def test_edit_answers_the_picture_and_what_was_done(house: House) -> None:
    sent = picture(seed=1)
    answer = await house.stub.Edit(request(sent, seed=2**64 - 1, request_id="mine", tier="free"))
    assert np.array_equal(decoded(answer.image.encoded), 255 - sent)
    assert (answer.height, answer.width, answer.format) == (32, 32, image_pb2.IMAGE_FORMAT_PNG)
    assert (answer.seed, answer.request_id, answer.tier, answer.model) == (2**64 - 1, "mine", "free", "fake")
    assert (answer.timings.ticks, answer.timings.queue_s) == (4, 0.01)
    assert answer.timings.total_s > 0
    job = house.batcher.requests[-1]
    assert (job.seed, job.without_progress, job.instruction) == (2**64 - 1, True, "make the hair blond")
    assert job.pixels.HasField("region")
    assert job.HasField("output")


@pytest.mark.parametrize(("asked", "drew"), [("turbo", "turbo"), ("none", ""), ("", "")])
async def test_the_answer_names_the_adapter_that_the_batcher_took(house: House, asked: str, drew: str) -> None:
    answer = await house.stub.Edit(request(adapter=asked))
    assert house.batcher.requests[-1].adapter == asked
    assert answer.adapter == drew


async def test_an_instruction_in_decomposed_korean_reaches_the_model_composed(house: House) -> None:
    typed = unicodedata.normalize("NFD", "금발로 만들어 줘")
    assert typed != "금발로 만들어 줘"
    await house.stub.Edit(request(instruction=f"  {typed} "))
    assert house.batcher.requests[-1].instruction == "금발로 만들어 줘"


async def test_stream_gives_events_in_order_with_previews(house: House) -> None:
    events = [event async for event in house.stub.EditStream(request(steps=4, preview_every=2))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["queued", "started", "step", "step", "step", "step", "done"]
    assert events[0].queued.predicted_s == pytest.approx(0.25)
    assert [event.step.step for event in events[2:6]] == [1, 2, 3, 4]
    assert [event.step.HasField("preview") for event in events[2:6]] == [False, True, False, True]
    preview = Image.open(io.BytesIO(events[3].step.preview.encoded))
    assert (preview.format, preview.size) == ("PNG", (16, 16))
    assert events[0].queued.request_id == events[-1].done.request_id


async def test_previews_cost_nothing_where_nobody_watches(house: House) -> None:
    await house.stub.Edit(request(preview_every=1))
    assert house.batcher.requests[-1].preview_every == 0


async def test_seeds_are_drawn_apart(house: House) -> None:
    seeds = {(await house.stub.Edit(request())).seed for _ in range(4)}
    assert len(seeds) == 4
    assert (await house.stub.Edit(request(seed=0))).seed == 0


async def test_absent_fields_are_left_to_the_batcher(house: House) -> None:
    await house.stub.Edit(request())
    job = house.batcher.requests[-1]
    assert (job.steps, job.guidance_scale, job.image_guidance_scale, job.sampler) == (0, 0.0, 0.0, 0)
    assert (job.tier, job.model, job.adapter, job.deadline_unix_s) == ("", "", "", 0.0)


async def test_deadline_becomes_an_absolute_time(house: House) -> None:
    start = time.time()
    await house.stub.Edit(request(), timeout=60)
    # gRPC sends the time that is left in few digits, rounded up, and a busy machine takes a while to send it.
    assert start + 55 < house.batcher.requests[-1].deadline_unix_s < time.time() + 62


async def test_the_same_request_id_for_two_requests_at_once_is_two_jobs(house: House) -> None:
    house.batcher.play(hold_at="started")
    calls = [house.stub.Edit(request(request_id="twin", seed=seed)) for seed in range(2)]
    assert await eventually(lambda: house.batcher.num_held == 2)
    house.batcher.resume.set()
    assert [(await call).request_id for call in calls] == ["twin", "twin"]
    assert len({job.job_id for job in house.batcher.requests}) == 2


@pytest.mark.parametrize(
    ("format", "name", "tolerance"),
    [
        (image_pb2.IMAGE_FORMAT_PNG, "PNG", 0),
        (image_pb2.IMAGE_FORMAT_JPEG, "JPEG", 12),
        (image_pb2.IMAGE_FORMAT_WEBP, "WEBP", 0),
    ],
)
async def test_answers_in_the_format_asked_for(
    house: House, format: image_pb2.ImageFormat, name: str, tolerance: int
) -> None:
    sent = picture(seed=3)
    answer = await house.stub.Edit(request(sent, output_format=format))
    assert answer.format == format
    assert Image.open(io.BytesIO(answer.image.encoded)).format == name
    assert np.abs(decoded(answer.image.encoded).astype(int) - (255 - sent)).max() <= tolerance


async def test_raw_pixels_in_and_out(house: House) -> None:
    sent = picture(seed=4)
    image = image_pb2.Image(tensor=image_pb2.RawImage(data=sent.tobytes(), height=32, width=32))
    answer = await house.stub.Edit(request(image=image, output_format=image_pb2.IMAGE_FORMAT_RAW))
    tensor = answer.image.tensor
    assert (tensor.height, tensor.width) == (32, 32)
    assert tensor.data == (255 - sent).tobytes()


@pytest.mark.parametrize(
    ("rule", "size"),
    [
        (image_pb2.SIZE_RULE_UNSPECIFIED, (32, 32)),
        (image_pb2.SIZE_RULE_CROP, (32, 32)),
        (image_pb2.SIZE_RULE_PAD, (16, 32)),
        (image_pb2.SIZE_RULE_STRETCH, (50, 100)),
    ],
)
async def test_answers_at_the_size_of_the_rule(house: House, rule: image_pb2.SizeRule, size: tuple[int, int]) -> None:
    events = [
        event async for event in house.stub.EditStream(request(picture(50, 100), size_rule=rule, preview_every=1))
    ]
    done = events[-1].done
    assert (done.height, done.width) == size
    assert decoded(done.image.encoded).shape == (*size, 3)
    preview = decoded(events[2].step.preview.encoded)
    assert preview.shape[0] / preview.shape[1] == pytest.approx(size[0] / size[1], rel=0.1)


async def test_jobs_beyond_the_arena_travel_in_messages(house: House) -> None:
    house.batcher.play(hold_at="started")
    calls = [house.stub.Edit(request(picture(seed=seed))) for seed in range(6)]
    assert await eventually(lambda: len(house.batcher.requests) == 6)
    assert house.gateway.loans.num_used == 4
    house.batcher.resume.set()
    for seed, call in enumerate(calls):
        assert np.array_equal(decoded((await call).image.encoded), 255 - picture(seed=seed))
    assert sum(job.pixels.HasField("inline") for job in house.batcher.requests) == 2
    assert await house.is_clean()


async def test_a_remote_batcher_gets_pixels_in_messages(tmp_path: Path) -> None:
    sent = picture(seed=5)
    async with opened(tmp_path, is_remote=True) as house:
        answer = await house.stub.Edit(request(sent))
        assert np.array_equal(decoded(answer.image.encoded), 255 - sent)
        assert house.batcher.requests[-1].pixels.HasField("inline")
