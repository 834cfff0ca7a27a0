"""A folder of engines: what its manifest says is what is there, or the reason why not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steploom_engine_worker.tensorrt.plan_store import (
    MANIFEST,
    Plan,
    PlanError,
    PlanStore,
    TensorSpec,
    add_file,
    key_of,
    open_store,
    write_whole,
)

TENSORS = (
    TensorSpec("tokens", "int32", (-1, 16), is_input=True),
    TensorSpec("context", "float16", (-1, 16, 32), is_input=False),
)
HERE: dict[str, Any] = {"model_digest": "abc", "flavour": "tensorrt", "version": "10.9.0", "capability": (9, 0)}


def plan_in(folder: Path, content: bytes = b"an engine", **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "network": "text_encoder",
        "buckets": (1,),
        "file": add_file(folder, content),
        "num_bytes": len(content),
        "tensors": TENSORS,
        "flavour": "tensorrt",
        "version": "10.9.0",
        "capability": (9, 0),
        "key": key_of(a=1),
        "settings": {"optimization_level": 3},
        "num_nodes": (20, 10),
        "num_layers": 12,
        "build_s": 0.5,
    }
    return Plan(**{**values, **changes})


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    made = PlanStore(tmp_path / "engines", "abc", "fp16", ("few-step",))
    made = made.with_plan(plan_in(made.folder)).with_plan(plan_in(made.folder, b"another", buckets=(4,)))
    made.write()
    return made


def test_what_was_written_is_read_back(store: PlanStore) -> None:
    found = open_store(store.folder)
    assert found == store
    assert [found.read(plan) for plan in found.of("text_encoder")] == [b"an engine", b"another"]
    assert found.of("unet") == ()
    found.check(**HERE)


def test_a_plan_takes_the_place_of_those_of_its_buckets_alone(store: PlanStore) -> None:
    other = plan_in(store.folder, b"of the unet", network="unet", buckets=(1, 4))
    shared = plan_in(store.folder, b"shared", buckets=(4, 6))
    changed = store.with_plan(other).with_plan(shared)
    assert [(plan.network, plan.buckets) for plan in changed.plans] == [
        ("text_encoder", (1,)),
        ("unet", (1, 4)),
        ("text_encoder", (4, 6)),
    ]


def test_files_that_no_plan_names_are_removed_after_the_manifest_is_there(store: PlanStore) -> None:
    (store.folder / "timing.cache").write_bytes(b"kept")
    replace(store, plans=store.plans[:1]).write()
    assert {file.name for file in store.folder.iterdir()} == {MANIFEST, "timing.cache", store.plans[0].file}
    assert open_store(store.folder).read(store.plans[0]) == b"an engine"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "manifest.json"
    write_whole(file, b"old")

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, b"new and longer")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["manifest.json"]  # noqa: PTH208 - hidden files too


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_bytes(b"an eng"), "has 6 bytes, must have 9: it is truncated"),
        (lambda file: file.write_bytes(b"an EngIne"), "damaged: its SHA-256 is not its name"),
        (lambda file: file.unlink(), "cannot be read: No such file"),
    ],
    ids=["truncated", "damaged", "missing"],
)
def test_a_file_that_is_not_the_one_is_refused(store: PlanStore, damage: Callable[[Path], None], words: str) -> None:
    damage(store.folder / store.plans[0].file)
    with pytest.raises(PlanError, match=words) as caught:
        open_store(store.folder).read(store.plans[0])
    assert "text_encoder for 1 row" in str(caught.value)
    assert "build it again with `steploom build-engine`" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_digest": "f" * 64}, "built from another model: digest abc, this one is ffffffffffff"),
        ({"flavour": "tensorrt_rtx"}, "was built by tensorrt 10.9.0, here is tensorrt_rtx 10.9.0"),
        ({"version": "10.10.0"}, "was built by tensorrt 10.9.0, here is tensorrt 10.10.0"),
        ({"capability": (8, 9)}, "was built for compute capability 9.0, this GPU has 8.9"),
    ],
)
def test_stale_and_foreign_plans_are_refused(store: PlanStore, change: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        store.check(**{**HERE, **change})


def test_a_store_without_plans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="holds no engine"):
        PlanStore(tmp_path, "abc", "fp16").check(**HERE)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="holds no engines; build it again"):
        open_store(tmp_path)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        manifest = json.loads(text)
        change(manifest)
        return json.dumps(manifest)

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text[:40], "cannot be read as JSON"),
        (lambda _: "[]", "is no manifest of engines"),
        (edited(lambda manifest: manifest.update(format=2)), "is of format 2, this program reads 1"),
        (edited(lambda manifest: manifest.pop("precision")), "is no manifest of engines: KeyError.'precision'"),
        (edited(lambda manifest: manifest["plans"][0].pop("tensors")), "is no manifest of engines: KeyError"),
        (edited(lambda manifest: manifest["plans"][0].update(more=1)), "is no manifest of engines: TypeError"),
        (edited(lambda manifest: manifest["plans"][0].update(file="../x.plan")), "file '../x.plan'"),
    ],
    ids=["cut off", "a list", "of another format", "incomplete", "incomplete plan", "unknown field", "a path"],
)
def test_a_manifest_that_is_none_is_refused(store: PlanStore, edit: Callable[[str], str], words: str) -> None:
    file = store.folder / MANIFEST
    file.write_text(edit(file.read_text()))
    with pytest.raises(PlanError, match=words):
        open_store(store.folder)


def test_keys_are_of_all_parts_in_any_order() -> None:
    assert key_of(a=1, b=(2, 3)) == key_of(b=[2, 3], a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a=1, b=1)}) == 4
