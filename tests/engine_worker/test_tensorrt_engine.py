"""The engine on TensorRT over a GPU that is not there: whole jobs, and what happens when a part of it fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tensorrt_house import House, array, done, draw, expected, house_of, put

from steploom_engine_worker.adapter_manifest import DESCRIPTION, FOLDER, WEIGHTS
from steploom_engine_worker.description import Description, describe
from steploom_engine_worker.engine import Job, Stage
from steploom_engine_worker.errors import AdapterRefused
from steploom_engine_worker.schedule import Sampler
from steploom_engine_worker.tensorrt.engine import TensorRTEngine
from steploom_engine_worker.tensorrt.fake.driver import Code
from steploom_engine_worker.tensorrt.load import build_tensorrt_engine

TOLERANCE = 4e-3  # of latents: float16 rounds what the networks take and give
STATE = ("latents", "history", "image_latents", "text")

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def model(adapted_dir: Path) -> Description:
    return describe(adapted_dir)


@pytest.fixture(scope="module")
def house(adapted_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> House:
    return house_of(adapted_dir, tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def engine(house: House) -> TensorRTEngine:
    """With all that it records."""
    engine = house.engine(record_all=True)
    assert engine.progress == (8, 8)
    return engine


def check_drawn(house: House, model: Description, engine: TensorRTEngine, jobs: Sequence[Job]) -> None:
    latents, pictures = draw(engine, jobs)
    for job, found, picture in zip(jobs, latents, pictures, strict=True):
        wanted, pixels = expected(model, house.folder, job)
        np.testing.assert_allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        assert np.abs(picture.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize(
    "adapters",
    [("",), ("few-step",), ("style",), ("", "few-step", ""), ("few-step", "few-step"), ("style", "", "few-step")],
)
def test_draws_what_the_networks_make_of_each_job_alone(
    house: House, model: Description, engine: TensorRTEngine, make_job: MakeJob, adapters: tuple[str, ...]
) -> None:
    words = ["make the hair blond", "put on sunglasses", "a red hat"]
    jobs = [
        make_job(
            picture=number, seed=2**63 + number, instruction=words[number], adapter=name, steps=2 + number % 2,
            guidance_scale=1.5 + number,
        )
        for number, name in enumerate(adapters)
    ]  # fmt: skip
    check_drawn(house, model, engine, jobs)


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("scales", [(7.5, 1.5), (3.0, 3.0), (2.0, 1.0), (1.0, 1.0)])
def test_every_sampler_and_every_number_of_branches(
    house: House,
    model: Description,
    engine: TensorRTEngine,
    make_job: MakeJob,
    sampler: Sampler,
    scales: tuple[float, float],
) -> None:
    job = make_job(sampler=sampler, steps=4, guidance_scale=scales[0], image_guidance_scale=scales[1])
    check_drawn(house, model, engine, [job])


@pytest.mark.parametrize("version", ["8.6.0", "10.0.1", "10.9.0", "11.0.0"])
@pytest.mark.parametrize("is_shared", [False, True])
def test_every_version_with_a_plan_or_a_profile_a_bucket(
    adapted_dir: Path, model: Description, tmp_path: Path, make_job: MakeJob, version: str, is_shared: bool
) -> None:
    house = house_of(adapted_dir, tmp_path, version, is_shared=is_shared)
    engine = house.engine(record_all=True)
    assert engine.progress == (8, 8)
    check_drawn(house, model, engine, [make_job(picture=number, seed=number) for number in range(4)])


@pytest.mark.parametrize("is_lazy", [False, True])
def test_many_jobs_one_after_another_in_the_same_slots(
    adapted_dir: Path, model: Description, tmp_path: Path, make_job: MakeJob, is_lazy: bool
) -> None:
    """Where the device is late, what is written too soon or read too early shows."""
    house = house_of(adapted_dir, tmp_path, is_lazy=is_lazy)
    engine = house.engine()
    for number in range(6):
        jobs = [make_job(picture=number + 10 * each, seed=number + each, steps=2) for each in range(3)]
        check_drawn(house, model, engine, jobs)
        if number % 2:
            engine.prepare()


def test_a_slots_next_job_waits_for_what_its_last_one_left_on_the_device(
    house: House, model: Description, engine: TensorRTEngine, make_job: MakeJob
) -> None:
    """A job that is cancelled leaves its slot while its ticks are still under way."""
    engine.admit(0, make_job(seed=1, steps=2))
    pending = [engine.encode([0]), engine.denoise([0], [0]), engine.denoise([0], [1])]
    engine.release(0)
    job = make_job(seed=2, picture=2, steps=1, instruction="a red hat")
    engine.admit(0, job)
    done(engine.encode([0]))
    done(engine.denoise([0], [0]))
    for tick in pending:
        done(tick)
    wanted, _ = expected(model, house.folder, job)
    np.testing.assert_allclose(array(engine, "latents")[0], wanted, rtol=TOLERANCE, atol=TOLERANCE)
    engine.release(0)


def test_a_tick_touches_no_slot_but_its_jobs(engine: TensorRTEngine, make_job: MakeJob) -> None:
    for slot in range(engine.num_slots):
        engine.admit(slot, make_job(seed=slot, picture=slot))
        done(engine.encode([slot]))
    before = {name: array(engine, name) for name in STATE}
    done(engine.denoise([3], [0]))
    done(engine.decode([3]))
    for name, old in before.items():
        now = array(engine, name)
        assert np.array_equal(np.delete(now, 3, axis=0), np.delete(old, 3, axis=0)), name
    assert not np.array_equal(array(engine, "latents")[3], before["latents"][3])
    assert (before["image_latents"][5] == 0.0).all()
    for slot in range(engine.num_slots):
        engine.release(slot)


def test_a_job_that_overflows_fails_alone_in_each_stage(
    house: House, model: Description, engine: TensorRTEngine, make_job: MakeJob
) -> None:
    for slot in (0, 4):
        engine.admit(slot, make_job(steps=1))
    done(engine.encode([4, 0]))
    put(engine, "latents", 0, np.nan)
    assert engine.denoise([4, 0], [0, 0]).wait().failures == {0: "the UNet gave values that are not finite"}
    wanted, _ = expected(model, house.folder, make_job(steps=1))
    np.testing.assert_allclose(array(engine, "latents")[4], wanted, rtol=TOLERANCE, atol=TOLERANCE)
    ended = engine.decode([4, 0]).wait()
    assert ended.failures == {0: "the VAE's decoder gave values that are not finite"}
    assert len(ended.pictures) == 2
    for slot in (0, 4):
        engine.release(slot)


@pytest.mark.parametrize(
    ("network", "source"), [("vae_encoder", "the VAE's encoder"), ("text_encoder", "the text encoder")]
)
def test_an_encoder_that_overflows_fails_its_jobs(
    house: House, engine: TensorRTEngine, make_job: MakeJob, network: str, source: str
) -> None:
    def spoil(name: str, out: np.ndarray[tuple[int, ...], np.dtype[np.float16]]) -> None:
        if name == network:
            out[1, ..., -1] = np.inf

    for slot in (1, 2):
        engine.admit(slot, make_job())
    house.trt.spoil = spoil
    try:
        assert engine.encode([1, 2]).wait().failures == {2: f"{source} gave values that are not finite"}
    finally:
        house.trt.spoil = None
    for slot in (1, 2):
        engine.release(slot)


def test_previews_are_of_the_step_that_they_were_asked_for(engine: TensorRTEngine, make_job: MakeJob) -> None:
    for slot in (0, 1):
        engine.admit(slot, make_job(seed=slot))
    done(engine.encode([0, 1]))
    first = engine.denoise([0, 1], [0, 0], previewed=[1])
    second = engine.denoise([0, 1], [1, 1])  # started before the first is waited for
    shown = done(first).previews
    assert list(shown) == [1]
    picture = shown[1]()
    done(second)
    latest = done(engine.denoise([0, 1], [2, 2], previewed=[1])).previews[1]()
    assert picture.shape == (8, 8, 3)
    assert picture.dtype == np.uint8
    assert not np.array_equal(picture, latest)
    for slot in (0, 1):
        engine.release(slot)


def test_ticks_that_are_under_way_at_once_keep_what_they_found_apart(engine: TensorRTEngine, make_job: MakeJob) -> None:
    """Each is read only when all have been started, as far as the worker lets them."""
    slots = list(range(engine.max_pending))
    for slot in slots:
        engine.admit(slot, make_job(seed=slot, picture=slot, steps=2))
    done(engine.encode(slots))
    apart = [done(engine.denoise([slot], [0], previewed=[slot])).previews[slot]() for slot in slots]
    shown = [done(engine.decode([slot])).pictures[0].copy() for slot in slots]
    done(engine.encode(slots))
    pending = [engine.denoise([slot], [0], previewed=[slot]) for slot in slots]
    engine.check()  # all of them have ended
    for slot, tick, picture in zip(slots, pending, apart, strict=True):
        assert np.array_equal(done(tick).previews[slot](), picture)
    pending = [engine.decode([slot]) for slot in slots]
    engine.check()
    for tick, picture in zip(pending, shown, strict=True):
        assert np.array_equal(done(tick).pictures[0], picture)
    assert not np.array_equal(shown[0], shown[1])
    assert not np.array_equal(apart[0], apart[1])
    for slot in slots:
        engine.release(slot)


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_picture_in_shared_memory_is_read_where_it_lies(
    house: House, engine: TensorRTEngine, make_job: MakeJob, is_refused: bool
) -> None:
    job = make_job(picture=7)
    memory = np.concatenate([np.zeros(64, np.uint8), job.pixels.reshape(-1)])
    if is_refused:
        house.driver.fail("cuMemHostRegister", Code.CUDA_ERROR_INVALID_VALUE)
    engine.share(memory)
    staged = engine.slots._staged["pixels"]
    staged[0] = 0
    pixels = memory[64:].reshape(job.pixels.shape)
    engine.admit(0, make_job(pixels=pixels))
    assert staged[0].any() == is_refused  # copied by the host only where the device may not
    house.driver.calls.clear()
    engine.unshare(memory)
    assert ("cuMemHostUnregister" in house.driver.calls) != is_refused
    memory[:] = 0  # it is somebody else's now
    assert np.array_equal(array(engine, "pixels")[0], job.pixels)
    engine.release(0)


def test_its_buckets_are_measured_whatever_the_settings_name(house: House) -> None:
    engine, costs = build_tensorrt_engine(house.config(denoise_buckets=(1, 2, 99)), house.finders)
    denoise = {bucket for stage, bucket in costs if stage is Stage.DENOISE}
    assert denoise == {1, 3, 6, 12}
    assert all(seconds > 0.0 for seconds in costs.values())
    cheaper = engine.prepare()
    assert cheaper
    assert {*cheaper} <= {*costs}


def test_says_what_it_is(house: House, engine: TensorRTEngine, model: Description) -> None:
    assert (engine.name, engine.device, engine.max_pending, engine.num_slots) == ("tensorrt", "cuda:0", 4, 5)
    assert engine.model.digest == model.base_digest
    assert {*engine.model.adapters} == {"few-step", "style"}
    assert engine.known_costs is None
    memory = engine.memory
    assert memory.total == 1 << 30
    assert memory.free == (1 << 30) - house.driver.used_bytes
    assert memory.slots == engine.slots.num_bytes
    assert memory.weights > 0
    assert engine.buckets == {Stage.ENCODE: [1, 4], Stage.DENOISE: [1, 3, 6, 12], Stage.DECODE: [1, 4]}


def test_adapters_are_those_of_the_plans(adapted_dir: Path, house: House, make_job: Callable[..., Job]) -> None:
    engine = house.engine()
    (style,) = [item for item in engine.model.versions if item.name == "style"]
    engine.drop_adapter("style", style.digest)
    with pytest.raises(ValueError, match="adapter 'style' does not exist; there are: few-step"):
        engine.admit(0, make_job(adapter="style"))
    engine.put_adapter(engine.read_adapter("style"))
    engine.admit(0, make_job(adapter="style"))
    assert engine.model.versions[-1] == style
    folder = adapted_dir / FOLDER / "late"
    folder.mkdir()
    try:
        for name in (DESCRIPTION, WEIGHTS):
            (folder / name).write_bytes((folder.parent / "style" / name).read_bytes())
        with pytest.raises(AdapterRefused, match="run `steploom build-engine`, and start the worker again"):
            engine.read_adapter("late")
    finally:
        shutil.rmtree(folder)
