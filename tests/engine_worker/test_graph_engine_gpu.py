"""The GPU's engine on a GPU: the CPU's pictures, no waiting within a tick, no memory taken once it is warm."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import faulty_worker
import grpc
import numpy as np
import pytest
import torch
from adapted_model import list_adapters

from steploom_common.arena import Arena, ArenaViews
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Job, ReadAdapter, Stage
from steploom_engine_worker.errors import EXIT_FATAL, EXIT_STUCK
from steploom_engine_worker.graph_engine import GraphEngine, load_graph_engine
from steploom_engine_worker.readiness import PLAIN
from steploom_engine_worker.torch_engine import TorchEngine, load_torch_engine
from steploom_engine_worker.warmup import warm_up
from steploom_loadtest.stack import to_toml
from steploom_protos.worker.v1 import worker_pb2, worker_pb2_grpc

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on a GPU")

MIXES = [("",), ("few-step", "few-step"), ("", "few-step", "style")]


def config(root: Path, **changes: object) -> WorkerConfig:
    values = {"model": str(root), "slots": 4, "max_steps": 8, "denoise_buckets": (1, 3, 6, 12)}
    return WorkerConfig(**{**values, "encode_buckets": (1, 4), "decode_buckets": (1, 4), **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def on_cpu(adapted_dir: Path) -> TorchEngine:
    return load_torch_engine(config(adapted_dir))


@pytest.fixture(scope="module")
def half(adapted_dir: Path) -> GraphEngine:
    return load_graph_engine(config(adapted_dir, device="cuda", dtype="float16", record_all=True))


@pytest.fixture
def exact() -> Iterator[None]:
    """Single precision as it is written, not in nineteen bits."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def draw(engine: TorchEngine, jobs: list[Job]) -> list[np.ndarray]:
    """Pictures of jobs of one step count that share every tick; ticks are started ahead, as a worker does."""
    slots = list(range(len(jobs)))
    for slot, job in zip(slots, jobs, strict=True):
        engine.admit(slot, job)
    started = [engine.encode(slots)]
    started += [engine.denoise(slots, [step] * len(jobs)) for step in range(jobs[0].steps)]
    started.append(engine.decode(slots))
    done = [each.wait() for each in started]
    assert not any(each.failures for each in done)
    for slot in slots:
        engine.release(slot)
    return [picture.copy() for picture in done[-1].pictures]


def jobs_of(make_job: Callable[..., Job], adapters: tuple[str, ...]) -> list[Job]:
    return [make_job(picture=number, seed=number, adapter=name, steps=3) for number, name in enumerate(adapters)]


@pytest.mark.parametrize("adapters", MIXES)
def test_single_precision_draws_the_cpu_s_pictures(
    adapted_dir: Path, on_cpu: TorchEngine, make_job: Callable[..., Job], adapters: tuple[str, ...], exact: None
) -> None:
    engine = load_graph_engine(config(adapted_dir, device="cuda", denoise_buckets=(12,)))
    jobs = jobs_of(make_job, adapters)
    for theirs, ours in zip(draw(on_cpu, jobs), draw(engine, jobs), strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("adapters", MIXES)
def test_half_precision_draws_nearly_the_cpu_s_pictures(
    on_cpu: TorchEngine, half: GraphEngine, make_job: Callable[..., Job], adapters: tuple[str, ...]
) -> None:
    jobs = jobs_of(make_job, adapters)
    for theirs, ours in zip(draw(on_cpu, jobs), draw(half, jobs), strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 2


def test_nothing_from_admission_on_waits_for_the_device(half: GraphEngine, make_job: Callable[..., Job]) -> None:
    jobs = jobs_of(make_job, ("", "few-step"))
    draw(half, jobs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for slot, job in enumerate(jobs):
            half.admit(slot, job)
        started = [half.encode([0, 1])]
        started += [half.denoise([0, 1], [step, step]) for step in range(3)]
        started.append(half.decode([0, 1]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not any(each.wait().failures for each in started)


def test_no_memory_is_taken_once_it_is_warm(half: GraphEngine, make_job: Callable[..., Job]) -> None:
    jobs = jobs_of(make_job, ("", "few-step", "style", ""))
    draw(half, jobs)
    done, total = half.progress
    assert done == total
    reserved = torch.cuda.memory_reserved()
    for _ in range(5):
        draw(half, jobs[:1])
        draw(half, jobs)
    assert torch.cuda.memory_reserved() == reserved
    for slot, job in enumerate(jobs):
        half.admit(slot, job)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    half.encode([0, 1, 2, 3]).wait()
    half.denoise([0, 1, 2, 3], [0, 0, 0, 0], previewed=[0, 2]).wait()
    half.decode([0, 1, 2, 3]).wait()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_pictures_are_the_same_while_buckets_become_ready(
    adapted_dir: Path, half: GraphEngine, make_job: Callable[..., Job]
) -> None:
    expected = {adapters: draw(half, jobs_of(make_job, adapters)) for adapters in MIXES}
    engine = load_graph_engine(config(adapted_dir, device="cuda", dtype="float16"))
    done, total = engine.progress
    assert (done, total) == (4, 4 + 2 * 4 + 1 + 2 + 2)  # of mixed rows the largest alone
    while True:
        for adapters, pictures in expected.items():
            for theirs, ours in zip(pictures, draw(engine, jobs_of(make_job, adapters)), strict=True):
                assert np.abs(ours.astype(int) - theirs).mean() < 2
        if engine.prepare() is None:
            break
    assert engine.progress == (total, total)  # none was given up


def test_a_recording_disturbs_nothing_that_is_under_way(
    adapted_dir: Path, half: GraphEngine, make_job: Callable[..., Job]
) -> None:
    """Neither by the memory that it shares with the lane's other graphs, nor by what it runs on."""
    jobs = jobs_of(make_job, ("", "few-step"))
    expected = draw(half, jobs)
    engine = load_graph_engine(config(adapted_dir, device="cuda", dtype="float16"))
    for slot, job in enumerate(jobs):
        engine.admit(slot, job)
    started = [engine.encode([0, 1])]
    for step in range(3):
        assert engine.prepare() is not None
        started.append(engine.denoise([0, 1], [step, step]))
        assert engine.prepare() is not None
    started.append(engine.decode([0, 1]))
    assert engine.prepare() is not None
    done = [each.wait() for each in started]
    assert not any(each.failures for each in done)
    for theirs, ours in zip(expected, done[-1].pictures, strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 2


def test_what_is_recorded_later_costs_less_than_padding_to_the_largest(adapted_dir: Path) -> None:
    engine = load_graph_engine(config(adapted_dir, device="cuda", dtype="float16", denoise_buckets=(3, 768)))
    costs: dict[tuple[Stage, int], float] = {}
    while (cheaper := engine.prepare()) is not None:
        costs.update(cheaper)
    largest = engine._seconds[engine._readiness.look_up(Stage.DENOISE, PLAIN, 768)]
    assert 0 < costs[Stage.DENOISE, 3] < largest


def test_the_text_encoder_is_recorded(half: GraphEngine) -> None:
    assert half._text_problem == ""


def test_what_waits_for_the_device_is_told_from_what_does_not(half: GraphEngine) -> None:
    values = torch.ones(4, device="cuda")
    assert half._side.obstacle(lambda: values.add_(1.0)) == ""
    assert "synchroniz" in half._side.obstacle(lambda: bool(values.all()))
    assert torch.cuda.get_sync_debug_mode() == 0


def test_a_preview_is_of_its_own_step_whatever_runs_after_it(half: GraphEngine, make_job: Callable[..., Job]) -> None:
    def previews(waits: bool) -> list[bytes]:
        for slot in (0, 1):
            half.admit(slot, make_job(steps=4, seed=slot))
        half.encode([0, 1]).wait()
        ticks = []
        for step in range(4):
            ticks.append(half.denoise([0, 1], [step, step], previewed=[1, 0]))
            if waits:
                torch.cuda.synchronize()
        return [preview().tobytes() for tick in ticks for preview in tick.wait().previews.values()]

    one_by_one = previews(waits=True)
    assert len(set(one_by_one)) == 8
    assert previews(waits=False) == one_by_one


def test_a_job_that_overflows_fails_alone(half: GraphEngine, make_job: Callable[..., Job]) -> None:
    expected = draw(half, [make_job(steps=1)])[0]
    for slot in (0, 1):
        half.admit(slot, make_job(steps=1))
    half.encode([0, 1]).wait()
    half.slots.latents[1] = torch.nan
    torch.cuda.synchronize()
    assert half.denoise([0, 1], [0, 0]).wait().failures == {1: "the UNet gave values that are not finite"}
    assert np.abs(half.decode([0]).wait().pictures[0].astype(int) - expected).max() <= 2


def test_costs_are_of_device_time(half: GraphEngine, adapted_dir: Path) -> None:
    costs = warm_up(half, config(adapted_dir))
    assert len(costs) == 2 + 4 + 2
    assert all(0 < seconds < 1 for seconds in costs.values())


def test_the_memory_of_the_device_is_told(half: GraphEngine) -> None:
    memory = half.memory
    assert 0 < memory.free < memory.total
    assert 0 < memory.slots < memory.total - memory.free
    assert 0 < memory.weights < memory.total - memory.free


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A folder in memory, where arenas lie: Linux pins no pages of a disk's files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_the_device_reads_shared_memory_by_itself(
    half: GraphEngine, make_job: Callable[..., Job], shared_memory: Path
) -> None:
    expected = draw(half, [make_job()])[0]
    side = half.model.height
    arena = Arena(shared_memory, side * side * 3, 4)
    views = ArenaViews(shared_memory, half.share, half.unshare)
    arena.borrow()
    block = arena.borrow()
    assert block is not None
    arena.write(block.input, make_job().pixels)
    pixels = views.picture(block.input, side, side)
    assert torch.from_numpy(pixels).is_pinned()
    target = half.slots.pixels[1]
    assert half._pinned.start_copy(pixels, lambda given: target.copy_(torch.from_numpy(given), non_blocking=True))
    torch.cuda.synchronize()
    assert np.array_equal(half.slots.pixels[1].cpu().numpy(), pixels)
    assert np.abs(draw(half, [make_job(pixels=pixels)])[0].astype(int) - expected).max() <= 1
    views.close()
    assert not torch.from_numpy(pixels).is_pinned()
    assert np.abs(draw(half, [make_job(pixels=pixels)])[0].astype(int) - expected).max() <= 1
    arena.close()


def test_memory_that_cuda_does_not_take_is_staged_and_breaks_no_kernel(
    half: GraphEngine, make_job: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    memory = np.zeros(1 << 20, np.uint8)
    half.share(memory)
    half.share(memory)  # it is known already: an error of CUDA's
    assert "cannot be pinned" in caplog.text
    assert torch.zeros(8, device="cuda").add_(1).sum().item() == 8
    half.unshare(memory)
    assert not torch.from_numpy(memory).is_pinned()
    draw(half, [make_job()])


@pytest.mark.parametrize(
    ("poison", "code", "words"),
    [
        ("poison-assertion", EXIT_FATAL, "the engine cannot go on: "),
        ("poison-address", EXIT_FATAL, "the engine cannot go on: "),
        ("poison-hang", EXIT_STUCK, "the worker is stuck: the "),
    ],
)
def test_a_poisoned_gpu_ends_the_process_with_a_code_of_its_own(
    adapted_dir: Path,
    make_job: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    poison: str,
    code: int,
    words: str,
) -> None:
    """A kernel that writes to where nothing is, one that reads behind an array, and one that does not end."""
    monkeypatch.setenv("PYTHONPATH", faulty_worker.python_path())
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / poison).write_text("now")
    limits = {"tick_timeout_s": 3.0} if code == EXIT_STUCK else {}
    settings = asdict(config(adapted_dir, device="cuda", dtype="float16", denoise_buckets=(3,), **limits))
    (tmp_path / "w.toml").write_text(to_toml({"worker": settings}))
    address = f"unix:{tmp_path}/w.sock"
    command = [sys.executable, faulty_worker.__file__, str(tmp_path / "faults"), "--config", str(tmp_path / "w.toml")]
    with subprocess.Popen([*command, "--listen", address], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert not drive(address, make_job())
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == code, errors
    assert words in errors


def drive(address: str, job: Job) -> bool:
    """Whether a worker draws a picture."""
    pixels = worker_pb2.Pixels(height=job.pixels.shape[0], width=job.pixels.shape[1], inline=job.pixels.tobytes())
    steps = faulty_worker.STEPS_BEFORE + 3
    admit = worker_pb2.Admit(
        job_id="a", instruction=job.instruction, pixels=pixels, steps=steps, guidance_scale=job.guidance_scale,
        image_guidance_scale=job.image_guidance_scale,
    )  # fmt: skip
    ticks = [
        worker_pb2.Tick(tick_id=1, stage=worker_pb2.STAGE_ENCODE, slots=[0]),
        *(
            worker_pb2.Tick(tick_id=2 + step, stage=worker_pb2.STAGE_DENOISE, slots=[0], steps=[step])
            for step in range(steps)
        ),
        worker_pb2.Tick(tick_id=99, stage=worker_pb2.STAGE_DECODE, slots=[0]),
    ]
    ended = threading.Event()

    def stay() -> Iterator[worker_pb2.Command]:
        """A batcher keeps its stream open: a worker forgets what waits when it closes."""
        yield worker_pb2.Command(admit=admit)
        yield from (worker_pb2.Command(tick=tick) for tick in ticks)
        ended.wait(240)

    with grpc.insecure_channel(address) as channel:
        reports = worker_pb2_grpc.WorkerStub(channel).Drive(stay(), wait_for_ready=True, timeout=240)
        try:
            return any(report.tick_done.tick_id == 99 for report in reports)
        except grpc.RpcError:
            return False
        finally:
            ended.set()


def test_adapters_come_and_go_while_ticks_are_under_way(
    adapted_dir: Path, half: GraphEngine, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """As an engine draws that had them from the start; what was started before does not notice; memory comes back."""
    root = tmp_path / "tiny"
    shutil.copytree(adapted_dir, root)
    list_adapters(root, "few-step")
    jobs = jobs_of(make_job, ("", "few-step", "style"))
    expected = draw(half, jobs)
    engine = load_graph_engine(config(root, device="cuda", dtype="float16", record_all=True))
    for slot in (0, 1):
        engine.admit(slot, jobs[slot])
    started = [engine.encode([0, 1]), engine.denoise([0, 1], [0, 0])]
    read: list[ReadAdapter] = []
    reader = threading.Thread(target=lambda: read.append(engine.read_adapter("style")))
    reader.start()
    started.append(engine.denoise([0, 1], [1, 1]))
    reader.join()
    engine.put_adapter(read[0])
    engine.admit(2, jobs[2])
    started += [engine.encode([2]), engine.denoise([2], [0]), engine.denoise([2], [1])]
    started += [engine.denoise([1, 2, 0], [2, 2, 2]), engine.decode([0, 1, 2])]
    done = [each.wait() for each in started]
    assert not any(each.failures for each in done)
    for theirs, ours in zip(expected, done[-1].pictures, strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 2
    for slot in (0, 1, 2):
        engine.release(slot)
    while engine.prepare() is not None:
        pass
    assert engine.progress[0] == engine.progress[1]
    for theirs, ours in zip(expected, draw(engine, jobs), strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 2
    with_it = torch.cuda.memory_allocated()
    engine.drop_adapter("style", read[0].version.digest)
    assert torch.cuda.memory_allocated() < with_it
    for theirs, ours in zip(expected, draw(engine, jobs[:2]), strict=False):
        assert np.abs(ours.astype(int) - theirs).mean() < 2
