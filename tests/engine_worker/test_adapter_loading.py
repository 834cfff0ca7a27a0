"""Adapters that come and go while an engine serves: who gets which weights, and what is refused without a trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from adapted_model import STUDENT, add_adapter, list_adapters
from hypothesis import given, settings
from hypothesis import strategies as st

from steploom_engine_worker.adapter_files import DESCRIPTION, FOLDER, WEIGHTS, AdapterManifest
from steploom_engine_worker.adapter_shelf import Shelf
from steploom_engine_worker.engine import AdapterVersion, Job
from steploom_engine_worker.errors import AdapterMissing, AdapterRefused, ModelError
from steploom_engine_worker.graph_engine import Buckets, GraphEngine
from steploom_engine_worker.model import load_model
from steploom_engine_worker.torch_engine import TorchEngine

TOLERANCE = 2e-4  # of latents: sums in another order
BUCKETS = Buckets(encode=(1, 4), denoise=(3, 12), decode=(1, 4))
CPU = torch.device("cpu")
Make = Callable[[Path], TorchEngine]


def plain_engine(root: Path) -> TorchEngine:
    return TorchEngine(load_model(root), 4, 8, CPU, torch.float32, spare_adapters=2)


def lean_engine(root: Path) -> TorchEngine:
    return TorchEngine(load_model(root), 4, 8, CPU, torch.float32, merge_adapters=False, spare_adapters=2)


def graph_engine(root: Path) -> TorchEngine:
    return GraphEngine(load_model(root), 4, 8, CPU, torch.float32, BUCKETS, spare_adapters=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more, and wait for them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[plain_engine, graph_engine])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@pytest.fixture
def root(adapted_dir: Path, tmp_path: Path) -> Path:
    """The tiny model with its own adapters, and one more in its folder that it does not list."""
    copy = tmp_path / "tiny"
    shutil.copytree(adapted_dir, copy)
    add_adapter(copy, "late", seed=5)
    list_adapters(copy, "few-step", "style")
    return copy


def load(engine: TorchEngine, name: str) -> None:
    engine.put_adapter(engine.read_adapter(name))


def prepare_all(engine: TorchEngine) -> None:
    while engine.prepare() is not None:
        pass


def begin(engine: TorchEngine, slot: int, job: Job) -> None:
    engine.admit(slot, job)
    engine.encode([slot]).wait()


def steps(engine: TorchEngine, slots: list[int], first: int, last: int) -> None:
    for step in range(first, last):
        assert not engine.denoise(slots, [step] * len(slots)).wait().failures


def picture(engine: TorchEngine, slot: int) -> np.ndarray:
    (drawn,) = engine.decode([slot]).wait().pictures
    engine.release(slot)
    return np.array(drawn)


def latents_of(engine: TorchEngine, job: Job) -> torch.Tensor:
    begin(engine, 0, job)
    steps(engine, [0], 0, job.steps)
    found = engine.slots.latents[0].clone()
    engine.release(0)
    return found


@pytest.mark.parametrize("make", [plain_engine, lean_engine, graph_engine])
def test_draws_as_an_engine_that_had_it_from_the_start(make: Make, root: Path, make_job: Callable[..., Job]) -> None:
    engine = make(root)
    load(engine, "late")
    assert list(engine.model.adapters) == ["few-step", "style", "late"]
    list_adapters(root, "late")
    job = make_job(adapter="late")
    torch.testing.assert_close(latents_of(engine, job), latents_of(make(root), job), rtol=0, atol=TOLERANCE)
    assert not torch.allclose(latents_of(engine, job), latents_of(engine, make_job()), atol=0.1)


def test_a_model_that_had_none(make: Make, root: Path, make_job: Callable[..., Job]) -> None:
    list_adapters(root)
    engine = make(root)
    plain = latents_of(engine, make_job())
    for name in ("late", "style"):
        load(engine, name)
    jobs = [make_job(adapter=name, seed=number) for number, name in enumerate(("", "late", "style", "late"))]
    knows_all = plain_engine(root_with(root, "late", "style"))
    expected = [latents_of(knows_all, job) for job in jobs]
    for slot, job in enumerate(jobs):
        begin(engine, slot, job)
    steps(engine, [2, 0, 3, 1], 0, 3)
    for slot, latents in enumerate(expected):
        torch.testing.assert_close(engine.slots.latents[slot], latents, rtol=0, atol=TOLERANCE)
        engine.release(slot)
    for version in engine.model.versions:
        engine.drop_adapter(version.name, version.digest)
    torch.testing.assert_close(latents_of(engine, make_job()), plain, rtol=0, atol=TOLERANCE)


def test_jobs_in_slots_do_not_notice(make: Make, root: Path, make_job: Callable[..., Job]) -> None:
    """Neither the load, nor new jobs in the same ticks."""
    engine = make(root)
    jobs = [make_job(adapter=name, steps=4) for name in ("", "few-step", "style")]
    expected = [latents_of(engine, job) for job in jobs]
    for slot, job in enumerate(jobs):
        begin(engine, slot, job)
    steps(engine, [0, 1, 2], 0, 2)
    load(engine, "late")
    begin(engine, 3, make_job(adapter="late", steps=4))
    steps(engine, [3], 0, 2)
    steps(engine, [2, 0, 3, 1], 2, 4)
    for slot, latents in enumerate(expected):
        torch.testing.assert_close(engine.slots.latents[slot], latents, rtol=0, atol=TOLERANCE)
    expected_late = latents_of(make(root_with(root, "late")), make_job(adapter="late", steps=4))
    torch.testing.assert_close(engine.slots.latents[3], expected_late, rtol=0, atol=TOLERANCE)


def root_with(root: Path, *names: str) -> Path:
    list_adapters(root, *names)
    return root


@pytest.mark.parametrize("name", ["few-step", "late"])
def test_jobs_end_with_the_version_that_they_began_with(
    make: Make, root: Path, make_job: Callable[..., Job], name: str
) -> None:
    engine = make(root)
    load(engine, name)
    job = make_job(adapter=name, steps=4)
    old = next(item for item in engine.model.versions if item.name == name)
    before = latents_of(engine, job)
    begin(engine, 0, job)
    steps(engine, [0], 0, 1)
    add_adapter(root, name, seed=77)
    load(engine, name)
    begin(engine, 1, job)
    begin(engine, 2, make_job(adapter=name, steps=4, adapter_digest=old.digest))
    steps(engine, [1, 2], 0, 1)
    steps(engine, [0, 1, 2], 1, 4)
    for slot in (0, 2):
        torch.testing.assert_close(engine.slots.latents[slot], before, rtol=0, atol=TOLERANCE)
    after = latents_of(make(root), job)
    assert not torch.allclose(before, after, atol=0.1)
    torch.testing.assert_close(engine.slots.latents[1], after, rtol=0, atol=TOLERANCE)
    for slot in (0, 1, 2):
        engine.release(slot)
    engine.drop_adapter(name, old.digest)
    assert [item.name for item in engine.model.versions].count(name) == 1
    gone = make_job(adapter=name, steps=4, adapter_digest=old.digest)  # the latest of the name takes its place
    torch.testing.assert_close(latents_of(engine, gone), after, rtol=0, atol=TOLERANCE)


def test_what_is_dropped_is_gone_and_gives_its_memory_back(
    make: Make, root: Path, make_job: Callable[..., Job]
) -> None:
    engine = make(root)
    before, progress = engine.memory.weights, engine.progress
    expected = latents_of(engine, make_job(adapter="style"))
    for _ in range(5):  # more often than there are places
        load(engine, "late")
        assert engine.memory.weights > before
        engine.drop_adapter("late", engine.model.versions[-1].digest)
        assert (engine.memory.weights, engine.progress) == (before, progress)
    with pytest.raises(ValueError, match="adapter 'late' does not exist; there are: few-step, style"):
        engine.admit(0, make_job(adapter="late"))
    engine.drop_adapter("late", "unknown")
    torch.testing.assert_close(latents_of(engine, make_job(adapter="style")), expected, rtol=0, atol=TOLERANCE)


def test_unchanged_files_take_no_place(make: Make, root: Path) -> None:
    engine = make(root)
    for _ in range(5):
        for name in ("late", "few-step"):
            load(engine, name)
    assert [item.name for item in engine.model.versions] == ["few-step", "style", "late"]


def test_no_place_is_left(make: Make, root: Path) -> None:
    engine = make(root)
    for seed in (1, 2):
        add_adapter(root, "late", seed=seed)
        load(engine, "late")
    versions = engine.model.versions
    add_adapter(root, "late", seed=3)
    with pytest.raises(AdapterRefused, match=r"worker\.spare_adapters is 2"):
        engine.read_adapter("late")
    assert engine.model.versions == versions
    engine.drop_adapter("late", versions[-2].digest)
    load(engine, "late")


def breaks() -> Iterator[tuple[Callable[[Path], object], type[Exception], str]]:
    folder = f"{FOLDER}/late"
    yield lambda root: (root / folder / WEIGHTS).unlink(), ModelError, "adapter.safetensors: is missing"
    yield lambda root: (root / folder / WEIGHTS).write_bytes(b"x" * 99), ModelError, "no complete safetensors file"
    yield lambda root: (root / folder / DESCRIPTION).write_text("{"), ModelError, "cannot be read as JSON"
    yield lambda root: add_adapter(root, "late", seed=5, base_weights_sha256="0" * 64), ModelError, "other weights"
    yield lambda root: shutil.rmtree(root / folder), AdapterMissing, "'late' does not exist in .*are: few-step, style"
    yield lambda root: touch(root / "unet" / "config.json"), ModelError, "has changed since the worker read the model"


def touch(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_comment": "another"}))


@pytest.mark.parametrize(
    ("spoil", "error", "words"), list(breaks()), ids=lambda item: item if isinstance(item, str) else ""
)
def test_what_is_wrong_changes_nothing(
    root: Path, spoil: Callable[[Path], object], error: type[Exception], words: str
) -> None:
    engine = plain_engine(root)
    spoil(root)
    versions = engine.model.versions
    with pytest.raises(error, match=words):
        engine.read_adapter("late")
    assert engine.model.versions == versions


@pytest.mark.parametrize("name", ["../late", "", "none", ".late", "a/b", "late\0", "x" * 65])
def test_names_that_no_folder_may_have(root: Path, name: str) -> None:
    with pytest.raises(AdapterMissing, match="cannot exist: a name must be 1 to 64"):
        plain_engine(root).read_adapter(name)


def test_files_that_change_while_they_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = plain_engine(root)
    loaded = engine._loaded

    def meanwhile(*arguments: object) -> object:
        add_adapter(root, "late", seed=6)
        return loaded(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "_loaded", meanwhile)
    with pytest.raises(ModelError, match="was changed while it was read"):
        engine.read_adapter("late")


def test_no_memory_for_one_more(root: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = graph_engine(root)
    read, versions = engine.read_adapter("late"), engine.model.versions
    before, progress = engine.memory.weights, engine.progress

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GB")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_make", refuse)
        with pytest.raises(AdapterRefused, match="cannot be made ready on cpu: CUDA out of memory"):
            engine.put_adapter(read)
    assert (engine.model.versions, engine.memory.weights, engine.progress) == (versions, before, progress)
    latents_of(engine, make_job(adapter="style"))
    load(engine, "late")


def test_buckets_of_a_loaded_adapter_are_recorded_while_it_serves(root: Path, make_job: Callable[..., Job]) -> None:
    engine = graph_engine(root)
    prepare_all(engine)
    done, total = engine.progress
    load(engine, "late")
    assert engine.progress == (done + 1, total + 2)
    expected = latents_of(engine, make_job(adapter="late"))
    prepare_all(engine)
    assert engine.progress == (total + 2, total + 2)
    torch.testing.assert_close(latents_of(engine, make_job(adapter="late")), expected, rtol=0, atol=TOLERANCE)


VERSIONS = st.tuples(st.sampled_from("ab"), st.sampled_from("12"))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), VERSIONS)))
def test_no_two_versions_have_a_number_and_the_latest_counts(changes: list[tuple[bool, tuple[str, str]]]) -> None:
    shelf, model = Shelf([], 3), dict[tuple[str, str], int]()
    for is_load, (name, digest) in changes:
        version = AdapterVersion(name, digest, STUDENT)
        if not is_load:
            assert shelf.drop(name, digest) == model.pop((name, digest), None)
        elif shelf.holds(version):
            shelf.renew(version)
            model[name, digest] = model.pop((name, digest))
        elif len(model) == 3:
            with pytest.raises(AdapterRefused):
                shelf.place()
        else:
            number = shelf.place()
            shelf.put(number, version, AdapterManifest())
            assert number not in model.values()
            model[name, digest] = number
        assert [(item.name, item.digest) for item in shelf.versions if item.name == name] == [
            key for key in model if key[0] == name
        ]
        for (kept, _), number in model.items():  # the last of a name
            latest = [value for key, value in model.items() if key[0] == kept][-1]
            assert (shelf.find(kept).number, shelf.find(kept, "gone").number) == (latest, latest)
            assert number in model.values()
