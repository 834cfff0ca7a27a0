"""The GPU's engine, on a CPU: padded buckets over fixed memory give what the plain engine gives."""

from __future__ import annotations

import dataclasses
import json
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from steploom_common.settings import ConfigError
from steploom_engine_worker import lane
from steploom_engine_worker.capacity import slots_that_fit
from steploom_engine_worker.commands import Admit, Command, Picture, Tick, TickDone, TickStatus
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Costs, Done, Job, Pending, Stage
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.graph_engine import (
    MAX_PENDING,
    Buckets,
    GraphEngine,
    load_graph_engine,
    slot_bytes,
)
from steploom_engine_worker.graphs import HostRing
from steploom_engine_worker.lane import Mark, open_lane
from steploom_engine_worker.launch import build_engine
from steploom_engine_worker.model import load_model
from steploom_engine_worker.readiness import GATED, PLAIN, Recording
from steploom_engine_worker.rows import PADDING, pack_rows
from steploom_engine_worker.schedule import Sampler
from steploom_engine_worker.slots import Slots
from steploom_engine_worker.torch_engine import TorchEngine
from steploom_engine_worker.warmup import warm_up
from steploom_engine_worker.worker import Worker

TOLERANCE = 2e-4  # of latents: sums in another order
BUCKETS = Buckets(encode=(2, 4), denoise=(1, 3, 8, 12), decode=(1, 3, 4))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(adapted_dir: Path) -> TorchEngine:
    return TorchEngine(load_model(adapted_dir), 5, 8, CPU, torch.float32)


@pytest.fixture(scope="module")
def engine(adapted_dir: Path) -> GraphEngine:
    """With all that it records."""
    engine = fresh(adapted_dir)
    while engine.prepare() is not None:
        pass
    assert engine.progress == (18, 18)
    return engine


def fresh(root: Path) -> GraphEngine:
    """An engine as it starts: with the largest buckets."""
    return GraphEngine(load_model(root), 5, 8, CPU, torch.float32, BUCKETS)


def done(started: Done | Pending) -> Done:
    ended = started.wait()
    assert not ended.failures
    return ended


def draw(engine: TorchEngine, jobs: Sequence[Job]) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Final latents and pictures of jobs that share every tick that they can, in slots from the last."""
    slots = [engine.num_slots - 1 - number for number in range(len(jobs))]
    for slot, job in zip(slots, jobs, strict=True):
        engine.admit(slot, job)
    done(engine.encode(slots))
    for step in range(max(job.steps for job in jobs)):
        left = [slot for slot, job in zip(slots, jobs, strict=True) if step < job.steps]
        done(engine.denoise(left, [step] * len(left)))
    pictures = list(done(engine.decode(slots)).pictures)
    latents = [engine.slots.latents[slot].clone() for slot in slots]
    for slot in slots:
        engine.release(slot)
    return latents, pictures


@pytest.mark.parametrize(
    "adapters",
    [("",), ("few-step",), ("style",), ("", "few-step", ""), ("few-step", "few-step"), ("style", "", "few-step")],
)
def test_draws_what_the_plain_engine_draws(
    plain: TorchEngine, engine: GraphEngine, make_job: Callable[..., Job], adapters: tuple[str, ...]
) -> None:
    jobs = [
        make_job(picture=number, seed=number, adapter=name, steps=2 + number % 2, guidance_scale=1.5 + number)
        for number, name in enumerate(adapters)
    ]
    for expected, got in zip(draw(plain, jobs)[0], draw(engine, jobs)[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=TOLERANCE)
    for ours, theirs in zip(draw(engine, jobs)[1], draw(plain, jobs)[1], strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("sampler", list(Sampler))
def test_every_sampler(plain: TorchEngine, engine: GraphEngine, make_job: Callable[..., Job], sampler: Sampler) -> None:
    jobs = [make_job(sampler=sampler, steps=4)]
    torch.testing.assert_close(draw(engine, jobs)[0], draw(plain, jobs)[0], rtol=1e-5, atol=TOLERANCE)


def test_a_tick_touches_no_slot_but_its_jobs(engine: GraphEngine, make_job: Callable[..., Job]) -> None:
    for slot in range(engine.num_slots):
        engine.admit(slot, make_job(seed=slot))
        done(engine.encode([slot]))
    arrays = (engine.slots.latents, engine.slots.history, engine.slots.image_latents, engine.slots.text)
    before = [array.clone() for array in arrays]
    done(engine.denoise([3], [0]))
    done(engine.decode([3]))
    others = [0, 1, 2, 4]
    for array, old in zip(arrays, before, strict=True):
        assert torch.equal(array[others], old[others])
        assert torch.equal(array[5:], old[5:])  # the empty conditions
    assert not torch.equal(engine.slots.latents[3], before[0][3])
    for slot in range(engine.num_slots):
        engine.release(slot)


def test_a_job_that_overflows_fails_alone_in_each_stage(
    plain: TorchEngine, engine: GraphEngine, make_job: Callable[..., Job]
) -> None:
    (expected,), _ = draw(plain, [make_job(steps=1)])
    for slot in (0, 4):
        engine.admit(slot, make_job(steps=1))
    done(engine.encode([4, 0]))
    engine.slots.latents[0] = torch.nan
    assert engine.denoise([4, 0], [0, 0]).wait().failures == {0: "the UNet gave values that are not finite"}
    torch.testing.assert_close(engine.slots.latents[4], expected, rtol=1e-5, atol=TOLERANCE)
    ended = engine.decode([4, 0]).wait()
    assert ended.failures == {0: "the VAE's decoder gave values that are not finite"}
    assert len(ended.pictures) == 2
    for slot in (0, 4):
        engine.release(slot)


def test_ticks_of_one_adapter_alone_run_on_merged_weights(
    adapted_dir: Path, engine: GraphEngine, make_job: Callable[..., Job]
) -> None:
    names = ["", "few-step", "style"]
    for slot, name in enumerate(names):
        engine.admit(slot, make_job(adapter=name))
    assert [engine._form(slots) for slots in ([0], [1], [2], [1, 1], [0, 1], [1, 2])] == [PLAIN, 0, 1, 0, GATED, GATED]
    lean = GraphEngine(load_model(adapted_dir), 2, 8, CPU, torch.float32, Buckets((1,), (3,), (1,)), False)
    lean.admit(0, make_job(adapter="few-step"))
    assert lean._form([0]) == GATED


class Rated(dict[Recording, float]):
    """Seconds as a machine without noise would measure them: by rows, twice as many where they are gated."""

    def __getitem__(self, recording: Recording) -> float:
        return recording.bucket * (2.0 if recording.form == GATED else 1.0)


@pytest.mark.parametrize("seconds_gated", [1.0, 100.0])
def test_a_tick_of_several_adapters_goes_the_way_that_takes_less(
    adapted_dir: Path,
    plain: TorchEngine,
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    seconds_gated: float,
) -> None:
    engine = fresh(adapted_dir)
    while engine.prepare() is not None:
        pass
    for recording in engine._seconds:
        seconds = seconds_gated if recording.form == GATED else 1.0
        monkeypatch.setitem(engine._seconds, recording, seconds)
    names = ["few-step", "", "style", "few-step"]
    jobs = [make_job(picture=number, seed=number, adapter=name) for number, name in enumerate(names)]
    expected, _ = draw(plain, jobs)
    latents, _ = draw(engine, jobs)
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=TOLERANCE)
    for slot, job in enumerate(jobs):
        engine.admit(slot, job)
    passes = engine._passes([3, 1, 2, 0])
    if seconds_gated < 3.0:
        assert passes == [(Recording(Stage.DENOISE, GATED, 12), range(4))]
    else:
        by_form = {recording.form: (recording.bucket, [*jobs]) for recording, jobs in passes}
        assert by_form == {0: (3, [0, 3]), PLAIN: (3, [1]), 1: (3, [2])}
    engine.slots.latents[1] = torch.nan
    done(engine.encode([3, 2, 0]))
    ended = engine.denoise([3, 1, 2, 0], [0] * 4, previewed=[0, 2]).wait()
    assert ended.failures == {1: "the UNet gave values that are not finite"}
    assert {*ended.previews} == {0, 2}


@pytest.mark.parametrize("adapters", [("", "few-step"), ("style",)])
def test_pictures_do_not_depend_on_what_is_recorded(
    adapted_dir: Path, plain: TorchEngine, make_job: Callable[..., Job], adapters: tuple[str, ...]
) -> None:
    engine = fresh(adapted_dir)
    engine._seconds = Rated(engine._seconds)
    jobs = [make_job(picture=number, seed=number, adapter=name, steps=1) for number, name in enumerate(adapters)]
    expected, pictures = draw(plain, jobs)
    taken = set()
    assert engine.progress == (4, 18)
    while True:
        latents, drawn = draw(engine, jobs)
        torch.testing.assert_close(latents, expected, rtol=1e-5, atol=TOLERANCE)
        for ours, theirs in zip(drawn, pictures, strict=True):
            assert np.abs(ours.astype(int) - theirs).max() <= 1
        for slot, job in enumerate(jobs):
            engine.admit(slot, job)
        taken |= {recording for recording, _ in engine._passes(range(len(jobs)))}
        if [engine.prepare() for _ in range(5)][-1] is None:
            break
    assert len(taken) > 1  # what is recorded counts


def test_a_recording_disturbs_no_job(adapted_dir: Path, make_job: Callable[..., Job]) -> None:
    engine = fresh(adapted_dir)
    for slot in range(engine.num_slots):
        engine.admit(slot, make_job(seed=slot))
    done(engine.encode([0, 1, 2, 3]))
    done(engine.encode([4]))
    done(engine.denoise([0, 1, 2, 3], [0] * 4))
    spare = engine.num_slots
    arrays = [array for array in vars(engine.slots).values() if isinstance(array, torch.Tensor)]
    before = [array.clone() for array in arrays]
    while engine.prepare() is not None:
        pass
    for array, old in zip(arrays, before, strict=True):
        assert torch.equal(array[:spare], old[:spare])
        assert torch.equal(array[spare + 1 :], old[spare + 1 :])  # the empty conditions


def test_a_job_alone_is_recorded_first_and_what_ticks_want_before_that(
    adapted_dir: Path, make_job: Callable[..., Job]
) -> None:
    engine = fresh(adapted_dir)
    engine.admit(0, make_job(adapter="style"))
    done(engine.encode([0]))
    done(engine.denoise([0], [0]))  # the warm-up: it counts for nothing
    assert list(engine.prepare() or ()) == []  # of the student, whose costs no bucket has
    assert engine._readiness.look_up(Stage.DENOISE, 0, 1) == Recording(Stage.DENOISE, 0, 1)
    done(engine.denoise([0], [1]))
    engine.prepare()
    assert engine._readiness.look_up(Stage.DENOISE, 1, 3) == Recording(Stage.DENOISE, 1, 3)


def test_without_merged_weights_a_request_alone_is_gated(adapted_dir: Path) -> None:
    engine = GraphEngine(load_model(adapted_dir), 2, 8, CPU, torch.float32, Buckets((1, 2), (1, 3, 6), (2,)), False)
    order = []
    while (recording := engine._readiness.next()) is not None:
        order.append(str(recording))
        engine.prepare()
    assert order == ["encode 1", "denoise gated 1", "denoise 3", "denoise 1", "denoise gated 3"]


def test_a_recording_tells_what_costs_less(adapted_dir: Path) -> None:
    engine = fresh(adapted_dir)
    told: dict[Recording, list[int]] = {}
    while (recording := engine._readiness.next()) is not None:
        costs = engine.prepare()
        assert costs is not None
        assert all(stage is recording.stage and seconds > 0 for (stage, _), seconds in costs.items())
        told[recording] = [bucket for _, bucket in costs]
    assert told[Recording(Stage.ENCODE, PLAIN, 2)] == [2]
    assert told[Recording(Stage.DECODE, PLAIN, 1)] == [1]
    assert told[Recording(Stage.DENOISE, PLAIN, 3)] == [1, 3]
    assert told[Recording(Stage.DENOISE, PLAIN, 1)] == [1]
    assert told[Recording(Stage.DENOISE, 0, 12)] == []  # of an adapter: costs are those of rows without
    assert engine.prepare() is None


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError("no such algorithm")]
)
def test_a_recording_that_fails_is_given_up_and_larger_ones_serve(
    adapted_dir: Path,
    plain: TorchEngine,
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    engine = fresh(adapted_dir)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(engine._side, "record", fail)
        patched.setattr(engine._main, "record", fail)
        assert engine.prepare() == {}
    assert f"denoise adapter 0 1 is not recorded, larger ones serve in its place: {error}" in caplog.text
    assert engine.progress == (4, 17)
    jobs = [make_job(adapter="few-step", steps=1)]
    torch.testing.assert_close(draw(engine, jobs)[0], draw(plain, jobs)[0], rtol=1e-5, atol=TOLERANCE)


def test_a_device_that_is_lost_while_recording_is_told(adapted_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fresh(adapted_dir)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine._main, "record", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.prepare()


def test_more_rows_than_the_largest_bucket_are_refused(engine: GraphEngine, make_job: Callable[..., Job]) -> None:
    for slot in range(5):
        engine.admit(slot, make_job())
    with pytest.raises(ValueError, match="15 in a tick, the largest bucket is 12"):
        engine.denoise([0, 1, 2, 3, 4], [0] * 5)
    with pytest.raises(ValueError, match="5 in a tick, the largest bucket is 4"):
        engine.encode([0, 1, 2, 3, 4])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_wrong_setting(adapted_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"worker\.device: is 'cuda', which torch cannot use"):
        build_engine(WorkerConfig(model=str(adapted_dir), device="cuda", dtype="float16"))


def test_half_precision_wants_a_gpu(adapted_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"worker\.dtype: is float16, must be float32 or bfloat16 on a CPU"):
        build_engine(WorkerConfig(model=str(adapted_dir), dtype="float16"))


def test_a_unet_that_cannot_be_fused_is_named(adapted_dir: Path, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(adapted_dir, root)
    file = root / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "act_fn": "gelu"}))
    with pytest.raises(ModelError, match=r"config\.json: act_fn is 'gelu', must be 'silu' or 'swish'"):
        load_graph_engine(WorkerConfig(model=str(root)))


def test_the_vae_is_fused_and_the_module_let_go(plain: TorchEngine, engine: GraphEngine) -> None:
    assert engine._networks.vae is None
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    expected = plain._encode_pictures(pictures)
    torch.testing.assert_close(engine._encode_pictures(pictures), expected, rtol=1e-5, atol=TOLERANCE)
    latents = torch.randn(2, 4, 8, 8)
    expected = plain._decode_latents(latents)
    torch.testing.assert_close(engine._decode_latents(latents), expected, rtol=1e-5, atol=TOLERANCE)


def test_each_job_has_its_own_text_and_padding_changes_none(
    plain: TorchEngine, engine: GraphEngine, make_job: Callable[..., Job]
) -> None:
    words = ["make the hair blond", "smile", ""]
    for each in (plain, engine):
        for slot, instruction in zip((3, 0, 4), words, strict=True):
            each.admit(slot, make_job(instruction=instruction))
        done(each.encode([3, 0, 4]))
    assert not engine._text_problem
    torch.testing.assert_close(engine.slots.text[[3, 0, 4]], plain.slots.text[[3, 0, 4]], rtol=1e-5, atol=TOLERANCE)
    torch.testing.assert_close(engine.slots.text[4], engine.slots.text[-1], rtol=1e-5, atol=TOLERANCE)
    done(engine.encode([0]))  # in a bucket of two
    torch.testing.assert_close(engine.slots.text[[3, 0, 4]], plain.slots.text[[3, 0, 4]], rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("problem", ["called a synchronizing CUDA operation", ""])
def test_a_text_encoder_that_cannot_be_recorded_runs_beside(
    adapted_dir: Path,
    plain: TorchEngine,
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    problem: str,
) -> None:
    model = load_model(adapted_dir)
    if problem:
        monkeypatch.setattr(lane._ThreadLane, "obstacle", lambda *_: problem)
    else:
        model.text_encoder.config.use_attention_mask = True
    engine = GraphEngine(model, 5, 8, CPU, torch.float32, BUCKETS)
    reason = problem or "it has a mask, and looks into that"
    assert f"the text encoder is not recorded, encode ticks take longer: {reason}" in caplog.text
    for each in (plain, engine):
        for slot in (1, 2, 4):
            each.admit(slot, make_job(instruction=" ".join(["smile"] * 30)))  # no token of it is masked
        done(each.encode([4, 1, 2]))
    torch.testing.assert_close(engine.slots.text[[4, 1, 2]], plain.slots.text[[4, 1, 2]], rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("problem", ["none is recorded", ""])
def test_a_text_that_overflows_fails_its_job(
    adapted_dir: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    monkeypatch.setattr(lane._ThreadLane, "obstacle", lambda *_: problem)
    model = load_model(adapted_dir)
    engine = GraphEngine(model, 5, 8, CPU, torch.float32, BUCKETS)
    token = int(engine._tokenise(["smile"]).input_ids[0, 1])
    with torch.no_grad():
        model.text_encoder.get_input_embeddings().weight[token] = torch.nan
    for slot, instruction in ((3, "make the hair blond"), (1, "smile")):
        engine.admit(slot, make_job(instruction=instruction))
    assert engine.encode([3, 1]).wait().failures == {1: "the text encoder gave values that are not finite"}


class Readings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations for which a device would be waited for: those that read a value on the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(part in name for part in ("local_scalar_dense", "nonzero", "equal.default", "masked_select")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_the_text_encoder_reads_no_value_unless_it_has_a_mask(plain: TorchEngine) -> None:
    """So that a graph can hold it: checked here, where there is no device that would complain."""
    tokens = plain._tokenise(["make the hair blond"])
    with torch.inference_mode(), Readings() as readings:
        plain._text_states(tokens.input_ids)
    assert readings.names == []
    with torch.inference_mode(), Readings() as readings:
        plain._text_states(tokens.input_ids, tokens.attention_mask)
    assert readings.names


def test_a_vae_that_cannot_be_fused_stays_as_it_is(
    adapted_dir: Path, plain: TorchEngine, make_job: Callable[..., Job]
) -> None:
    model = load_model(adapted_dir)
    model.vae.register_to_config(act_fn="gelu")  # so it says: its blocks are those that the plain engine has
    engine = GraphEngine(model, 5, 8, CPU, torch.float32, BUCKETS)
    assert engine._networks.vae is model.vae
    jobs = [make_job(steps=1)]
    torch.testing.assert_close(draw(engine, jobs)[0], draw(plain, jobs)[0], rtol=1e-5, atol=TOLERANCE)
    assert np.abs(draw(engine, jobs)[1][0].astype(int) - draw(plain, jobs)[1][0]).max() <= 1


def test_the_settings_make_the_engine(adapted_dir: Path) -> None:
    config = WorkerConfig(
        model=str(adapted_dir), slots=2, max_steps=7, encode_buckets=(1,), denoise_buckets=(3,), decode_buckets=(1,)
    )
    engine = load_graph_engine(config)  # on the CPU
    assert (engine.num_slots, engine.model.max_steps, engine.max_pending) == (2, 7, MAX_PENDING)
    assert engine.progress == (4, 6)
    assert load_graph_engine(dataclasses.replace(config, record_all=True)).progress == (6, 6)


def test_slots_are_as_many_as_the_memory_allows(adapted_dir: Path) -> None:
    model = load_model(adapted_dir)
    each = slot_bytes(model, 8, torch.float16)
    sizes = [Slots(n, 8, model.latent_shape, (16, 32), model.side, CPU, torch.float16).num_bytes for n in (3, 5)]
    assert sizes[1] - sizes[0] == 2 * each
    assert slots_that_fit(1000 * each, each) == 100
    assert slots_that_fit(10**12, each) == 256
    assert slots_that_fit(each, each) == 1


def test_a_preview_is_of_its_own_step_whatever_is_started_after_it(
    plain: TorchEngine, engine: GraphEngine, make_job: Callable[..., Job]
) -> None:
    previews: dict[TorchEngine, list[np.ndarray]] = {}
    for each in (plain, engine):
        for slot in (0, 1, 2):
            each.admit(slot, make_job(steps=4, seed=slot))
        done(each.encode([0, 1, 2]))
        started = [each.denoise([0, 1, 2], [step] * 3, previewed=[2, 0]) for step in range(3)]
        ended = [done(tick) for tick in (*started, each.denoise([0, 1], [3, 3]))]
        assert [list(item.previews) for item in ended] == [[2, 0], [2, 0], [2, 0], []]
        previews[each] = [draw() for item in ended for draw in item.previews.values()]
    assert len({picture.tobytes() for picture in previews[engine]}) == 6
    for ours, theirs in zip(previews[engine], previews[plain], strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_worker_drives_it_from_warm_up_to_the_pictures(
    adapted_dir: Path, plain: TorchEngine, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """Ticks are started on one thread and end on another; pictures and previews are read there."""
    (expected,) = draw(plain, [make_job(steps=2)])[1]
    config = WorkerConfig(
        model=str(adapted_dir), slots=2, max_steps=4, encode_buckets=(1,), denoise_buckets=(1, 3), decode_buckets=(1,)
    )

    def build() -> tuple[GraphEngine, Costs]:
        engine = load_graph_engine(config)
        return engine, warm_up(engine, config)

    worker = Worker("w", build, tmp_path)
    worker.start()
    assert len(worker.ready.result(timeout=120).costs) == 4
    reports: queue.Queue[TickDone] = queue.Queue()
    session = worker.open_session(reports.put)
    job = make_job(steps=2)
    side = plain.model.height
    commands: list[Command] = [
        Admit(
            "a", 0, job.instruction, Picture(side, side, job.pixels.tobytes()), None, 2, job.guidance_scale,
            job.image_guidance_scale, job.seed, job.sampler, preview_every=1,
        ),
        Tick(1, Stage.ENCODE, [0]),
        Tick(2, Stage.DENOISE, [0], [0]),
        Tick(3, Stage.DENOISE, [0], [1]),
        Tick(4, Stage.DECODE, [0]),
    ]  # fmt: skip
    for command in commands:
        assert worker.submit(session, command)
    done = [reports.get(timeout=120) for _ in range(4)]
    assert [(item.tick_id, item.status, item.failures) for item in done] == [
        (number, TickStatus.OK, {}) for number in (1, 2, 3, 4)
    ]
    assert [len(item.pictures) for item in done] == [0, 1, 0, 1]
    picture = np.frombuffer(done[-1].pictures[0].picture.data, np.uint8).reshape(side, side, 3)
    assert np.abs(picture.astype(int) - expected).max() <= 1
    assert worker.stop(120)


def test_packed_rows_pad_rows_and_jobs(engine: GraphEngine, make_job: Callable[..., Job]) -> None:
    engine.admit(2, make_job(guidance_scale=7.5, image_guidance_scale=1.5))  # three rows
    engine.admit(4, make_job(adapter="few-step"))  # one
    packed = pack_rows(6, engine.slots, [4, 2], [1, 0])
    rows, jobs, branches = packed[:18].reshape(3, 6), packed[18:30].reshape(2, 6), packed[30:].reshape(6, 3)
    assert rows[0].tolist() == [4, 2, 2, 2, PADDING, PADDING]
    assert rows[1, :4].tolist() == [0, 0, 1, 2]
    assert rows[2, :4].tolist() == [1, 0, 0, 0]
    assert jobs[0].tolist() == [4, 2, *[PADDING] * 4]
    assert jobs[1, :2].tolist() == [1, 0]
    assert branches[:2].tolist() == [[0, 0, 0], [1, 2, 3]]


def test_a_ring_gives_an_array_again_only_after_all_that_may_be_under_way() -> None:
    ring = HostRing(MAX_PENDING, (2,), torch.int32, CPU)
    seen = [ring.next().data_ptr() for _ in range(2 * MAX_PENDING + 2)]
    assert len(set(seen[: MAX_PENDING + 1])) == MAX_PENDING + 1
    assert seen[: MAX_PENDING + 1] == seen[MAX_PENDING + 1 :]


class Followed:
    """A lane that remembers which marks it was told to follow."""

    def __init__(self) -> None:
        self._lane = open_lane(CPU)
        self.marks: list[Mark | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)

    def follow(self, mark: Mark | None) -> None:
        self.marks.append(mark)


def test_a_stage_follows_what_its_own_jobs_were_at(
    engine: GraphEngine, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = {name: Followed() for name in ("_admission", "_side", "_main")}
    for name, followed in lanes.items():
        monkeypatch.setattr(engine, name, followed)
    for slot in (0, 1):
        engine.admit(slot, make_job(steps=1))
    admitted = list(engine._marks[:2])
    done(engine.encode([0, 1]))
    assert lanes["_side"].marks == admitted
    (encoded,) = set(engine._marks[:2])
    done(engine.denoise([0], [0]))
    assert lanes["_main"].marks == [encoded]
    denoised = engine._marks[0]
    done(engine.denoise([1], [0]))
    done(engine.decode([0]))
    assert lanes["_side"].marks[-1] is denoised  # not the other job's later step
    drawn = engine._marks[0]
    engine.release(0)
    engine.admit(0, make_job())  # of a batcher that does not know of the ticks of the one before
    assert lanes["_admission"].marks[-1] is drawn


def test_weights_are_counted_once_and_merged_forms_too(adapted_dir: Path, plain: TorchEngine) -> None:
    model = load_model(adapted_dir)
    networks = [model.unet, model.vae, model.text_encoder, *(item.network for item in model.adapters)]
    each = [sum(item.nbytes for item in network.state_dict().values()) for network in networks]
    lean = TorchEngine(load_model(adapted_dir), 1, 8, CPU, torch.float32, merge_adapters=False).memory
    assert (lean.total, lean.free) == (0, 0)  # not of a CPU
    assert sum(each) <= lean.weights < sum(each) * 1.05
    assert plain.memory.slots == plain.slots.num_bytes > lean.slots
    assert plain.memory.weights > lean.weights + 0.1 * each[0]
    few = Buckets((1,), (3,), (1,))
    fused = [GraphEngine(load_model(adapted_dir), 1, 8, CPU, torch.float32, few, merge) for merge in (False, True)]
    # phases of enlarging convolutions, and counters of norms, which weigh much beside so small a model
    assert 0.9 * sum(each) < fused[0].memory.weights < 1.4 * sum(each)
    assert fused[1].memory.weights > fused[0].memory.weights + 0.1 * each[0]


def test_nobody_waits_for_a_whole_device_while_a_graph_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = threading.Event()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.set())
    waiting = threading.Thread(target=lane.wait_for_device, args=[torch.device("cuda", 0)])
    with lane._whole_device:  # as `record` holds it
        waiting.start()
        assert not waited.wait(0.05)
    waiting.join(10.0)
    assert waited.is_set()


def test_a_lane_of_a_cpu_is_the_thread() -> None:
    thread, ran = open_lane(CPU), []
    replay = thread.record(lambda: ran.append(1))
    start = thread.mark()
    with thread.working():
        replay()
    end = thread.mark()
    end.wait()
    thread.follow(start)
    assert thread.obstacle(lambda: ran.append(1)) == ""
    assert ran == [1, 1]
    assert end.seconds_since(start) >= 0
