"""Engines are built by a real TensorRT, on a CPU; nothing is run here, which needs a GPU."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import add_adapter

from steploom_engine_worker.adapter import linear_maps
from steploom_engine_worker.export import engines
from steploom_engine_worker.export.engines import EngineBuildError, Request, build_engines
from steploom_engine_worker.export.fp8 import quantise
from steploom_engine_worker.export.networks import NETWORKS, network
from steploom_engine_worker.export.onnx_graph import Graph, export
from steploom_engine_worker.model import load_model
from steploom_engine_worker.model_files import embedded_model
from steploom_engine_worker.tensorrt.builder import BuildError, BuildSettings, Built, Watcher, build
from steploom_engine_worker.tensorrt.flavour import Flavour, find_flavour
from steploom_engine_worker.tensorrt.plan_store import Plan, PlanStore, TensorSpec, open_store
from steploom_engine_worker.tiny_model import write_tiny_model

pytest.importorskip("tensorrt_rtx", reason="builds engines with tensorrt_rtx, which is not installed here")

ADA = (8, 9)
BUCKETS = (1, 3)

log = logging.getLogger(__name__)


class Notes:
    """A reporter and watcher that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: dict[str, float] = {}
        self.phases: list[str] = []

    def kept(self, plan: Plan) -> None:
        self.lines.append(f"kept {plan}")

    def dropped(self, what: str, reason: str) -> None:
        self.lines.append(f"dropped {what}: {reason}")

    def compiled(self) -> None:
        self.lines.append("compiled")

    def exported(self, graph: Graph, seconds: float) -> None:
        log.info("%s: %d nodes, %d after folding", graph.network.name, graph.nodes_before, graph.nodes_after)

    def checked(self, name: str, error: float) -> None:
        self.errors[name] = error

    def building(self, name: str, buckets: tuple[int, ...]) -> Watcher:
        return self

    def built(self, plan: Plan) -> None:
        self.lines.append(f"built {plan}")

    def start(self, phase: str, parent: str, steps: int) -> None:
        self.phases.append(phase)

    def advance(self, phase: str) -> None:
        assert phase in self.phases

    def finish(self, phase: str) -> None:
        pass


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    return find_flavour(["tensorrt_rtx"])


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def store(flavour: Flavour, notes: Notes, tmp_path_factory: pytest.TempPathFactory) -> PlanStore:
    request = Request(
        embedded_model(),
        tmp_path_factory.mktemp("embedded"),
        ADA,
        unet_buckets=BUCKETS,
        encode_buckets=BUCKETS,
        decode_buckets=BUCKETS,
        has_companions=False,
    )
    return build_engines(request, flavour, notes)


def test_every_network_of_the_embedded_model_has_an_engine_a_bucket(
    store: PlanStore, notes: Notes, flavour: Flavour
) -> None:
    assert open_store(store.folder) == store
    assert notes.lines == [f"built {plan}" for plan in store.plans]
    found = [(plan.network, plan.buckets) for plan in store.plans]
    assert found == [(name, (bucket,)) for name in NETWORKS for bucket in BUCKETS]
    assert len({store.read(plan) for plan in store.plans}) == len(found)
    store.check(load_model(embedded_model()).digest, flavour.name, flavour.version, ADA)
    assert store.adapters == ("few-step",)


def test_names_shapes_and_types_are_the_networks(store: PlanStore) -> None:
    def spec(name: str, dtype: str, *shape: int, is_input: bool = True) -> TensorSpec:
        return TensorSpec(name, dtype, (-1, *shape), is_input)

    expected = {
        "text_encoder": {spec("tokens", "int32", 32), spec("context", "float16", 32, 192, is_input=False)},
        "vae_encoder": {
            spec("pictures", "float16", 128, 128, 3),
            spec("latents", "float16", 32, 32, 4, is_input=False),
        },
        "unet": {
            spec("sample", "float16", 32, 32, 8),
            spec("timesteps", "float32"),
            spec("context", "float16", 32, 192),
            spec("gates", "float32", 1),
            spec("scales", "float32", 2),
            spec("prediction", "float16", 32, 32, 4, is_input=False),
        },
        "vae_decoder": {
            spec("latents", "float16", 32, 32, 4),
            spec("pictures", "float16", 128, 128, 3, is_input=False),
        },
    }
    assert {plan.network: set(plan.tensors) for plan in store.plans} == expected


def test_graphs_were_folded_and_held_against_torch(store: PlanStore, notes: Notes) -> None:
    assert all(error < 1e-2 for error in notes.errors.values())
    assert set(notes.errors) == set(NETWORKS)
    for plan in store.plans:
        before, after = plan.num_nodes
        assert after < 0.55 * before
        assert after < plan.num_layers < 2.5 * after, "what the parser adds are scalars and their casts"


def test_the_builder_told_how_far_it_was(notes: Notes) -> None:
    assert "Building engine" in notes.phases


def test_plans_hold_the_weights(store: PlanStore) -> None:
    unet = next(plan for plan in store.plans if plan.network == "unet")
    assert unet.num_bytes > (embedded_model() / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size


@pytest.fixture(scope="module")
def built_text(tiny_model_dir: Path, flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Request:
    """The network that is quickest to build, built."""
    folder = tmp_path_factory.mktemp("text")
    networks = ("text_encoder",)
    request = Request(
        tiny_model_dir, folder, ADA, encode_buckets=BUCKETS, networks=networks, is_checked=False, has_companions=False
    )
    build_engines(request, flavour, Notes())
    return request


@pytest.fixture(scope="module")
def text_graph(tiny_model_dir: Path) -> Graph:
    return export(network(load_model(tiny_model_dir, torch.float16), "text_encoder"))


@pytest.fixture
def text(built_text: Request, text_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """Its engines are there, for this test alone; to export it again would give the same graph."""
    monkeypatch.setattr(engines, "export", lambda _: text_graph)
    return replace(built_text, folder=shutil.copytree(built_text.folder, tmp_path / "text"))


def said(request: Request, flavour: Flavour) -> list[str]:
    notes = Notes()
    build_engines(request, flavour, notes)
    return notes.lines


ONE, THREE = "text_encoder for 1 row", "text_encoder for 3 rows"


def test_what_is_there_is_kept(text: Request, flavour: Flavour) -> None:
    assert said(text, flavour) == [f"kept {ONE}", f"kept {THREE}"]


def test_a_damaged_engine_alone_is_built_again(text: Request, flavour: Flavour) -> None:
    plan = open_store(text.folder).of("text_encoder")[1]
    (text.folder / plan.file).write_bytes(b"cut off")
    lines = said(text, flavour)
    assert lines[0] == f"kept {ONE}"
    assert lines[1].startswith(f"dropped the engine of {THREE}: ")
    assert "has 7 bytes" in lines[1]
    assert lines[2:] == [f"built {THREE}"]
    assert said(text, flavour) == [f"kept {ONE}", f"kept {THREE}"]


def change_manifest(folder: Path, **changes: object) -> None:
    """Of a field of the engine for one row, or of all engines."""
    manifest = json.loads((folder / "manifest.json").read_text())
    one = next(plan for plan in manifest["plans"] if plan["buckets"] == [1])
    for name, value in changes.items():
        (one if name in one else manifest)[name] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "1.2.0"}, "was built by tensorrt_rtx 1.2.0, here is tensorrt_rtx"),
        ({"flavour": "tensorrt"}, "was built by tensorrt 1"),
        ({"capability": [12, 0]}, "was built for compute capability 12.0, this GPU has 8.9"),
        ({"key": "of other settings"}, "was built with other settings"),
    ],
)
def test_a_foreign_engine_alone_is_built_again(
    text: Request, flavour: Flavour, changes: dict[str, object], reason: str
) -> None:
    change_manifest(text.folder, **changes)
    lines = said(text, flavour)
    assert lines[0].startswith(f"dropped the engine of {ONE}: {reason}")
    assert lines[1:] == [f"kept {THREE}", f"built {ONE}"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"model_digest": "0" * 64}, "the model is another"), ({"precision": "bf16"}, "they are in bf16")],
)
def test_engines_of_another_model_or_precision_are_all_built_again(
    text: Request, flavour: Flavour, changes: dict[str, object], reason: str
) -> None:
    change_manifest(text.folder, **changes)
    assert said(text, flavour) == [f"dropped 2 engines: {reason}", f"built {ONE}", f"built {THREE}"]


def test_a_folder_whose_manifest_is_lost_is_filled_again(text: Request, flavour: Flavour) -> None:
    (text.folder / "manifest.json").unlink()
    lines = said(text, flavour)
    assert lines[0].startswith("dropped what is there: ")
    assert lines[1:] == [f"built {ONE}", f"built {THREE}"]


def test_other_settings_and_buckets_make_other_engines(text: Request, flavour: Flavour) -> None:
    assert said(replace(text, encode_buckets=(1,)), flavour) == [
        f"kept {ONE}",
        f"dropped the engine of {THREE}: no such bucket is asked for",
    ]
    assert len(list(text.folder.glob("*.plan"))) == 1
    lines = said(replace(text, encode_buckets=(1,), settings=BuildSettings(optimization_level=1)), flavour)
    assert lines == [f"dropped the engine of {ONE}: was built with other settings", f"built {ONE}"]


def test_one_engine_has_a_profile_a_bucket(text: Request, flavour: Flavour) -> None:
    shared = replace(text, is_shared=True)
    assert said(shared, flavour) == ["built text_encoder for 1, 3 rows"]
    store = open_store(text.folder)
    assert [plan.buckets for plan in store.plans] == [BUCKETS]
    assert said(shared, flavour) == ["kept text_encoder for 1, 3 rows"]


def test_a_build_that_breaks_off_goes_on_where_it_was(
    text: Request, flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = replace(text, folder=tmp_path / "fresh")

    def break_off(*arguments: Any) -> Built:
        if arguments[2] == (3,):
            raise KeyboardInterrupt
        return build(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(engines, "build", break_off)
        with pytest.raises(KeyboardInterrupt):
            build_engines(fresh, flavour, Notes())
    assert [plan.buckets for plan in open_store(fresh.folder).plans] == [(1,)]
    assert said(fresh, flavour) == [f"kept {ONE}", f"built {THREE}"]
    assert [path for path in fresh.folder.iterdir() if path.is_dir()] == [], "graphs are removed"


def test_two_builds_do_not_share_a_folder(
    text: Request, flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_another(*arguments: Any) -> Built:
        with pytest.raises(ValueError, match="another build is at work there"):
            build_engines(fresh, flavour, Notes())
        return build(*arguments)

    fresh = replace(text, folder=tmp_path / "fresh", encode_buckets=(1,))
    monkeypatch.setattr(engines, "build", start_another)
    assert said(fresh, flavour) == [f"built {ONE}"]
    assert said(fresh, flavour) == [f"kept {ONE}"]


def test_an_engine_that_is_not_the_network_is_refused(
    text: Request, flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_names(*arguments: Any) -> Built:
        built = build(*arguments)
        return replace(built, tensors=tuple(replace(item, name=item.name + "_0") for item in built.tensors))

    monkeypatch.setattr(engines, "build", other_names)
    with pytest.raises(EngineBuildError, match=r"inputs and outputs differ: .*context_0"):
        build_engines(replace(text, folder=tmp_path / "fresh"), flavour, Notes())
    assert not (tmp_path / "fresh" / "manifest.json").exists()


def test_bfloat16_is_checked_in_float32_and_built(built_text: Request, flavour: Flavour, tmp_path: Path) -> None:
    notes = Notes()
    request = replace(built_text, folder=tmp_path / "bf16", precision="bf16", encode_buckets=(2,), is_checked=True)
    store = build_engines(request, flavour, notes)
    assert notes.errors["text_encoder"] < 1e-5
    assert store.precision == "bf16"
    assert {item.name: item.dtype for item in store.plans[0].tensors} == {"tokens": "int32", "context": "bfloat16"}


def test_floats_of_8_bits_in_the_transformers(
    flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
    }
    model = write_tiny_model(tmp_path / "small", unet=small)
    attention = [name for name, _ in linear_maps(load_model(model).unet) if "attn" in name]
    add_adapter(model, "few-step", seed=1, rank=16, names=attention)
    graphs: list[Graph] = []

    class Watching(Notes):
        def exported(self, graph: Graph, seconds: float) -> None:
            graphs.append(graph)

    sites = ("attn1.to_q", "attn2.to_q", "ff.net.0.proj", "ff.net.2")
    layers = [
        name.removesuffix(".attn1") for name, _ in load_model(model).unet.named_modules() if name.endswith("attn1")
    ]
    scales = {f"{layer}.{site}": 2.0**-5 for layer in layers for site in sites}
    monkeypatch.setattr(engines, "input_scales", lambda *_: scales)  # they are seen on jobs, which take their time
    notes = Watching()
    request = Request(
        model, tmp_path / "engines", ADA, "fp8", unet_buckets=(2,), networks=("unet",), has_companions=False
    )
    store = build_engines(request, flavour, notes)
    # query, key, value, query of the text, and both maps of the feed-forward layer; not what the adapter adds to them
    assert graphs[0].operators["QuantizeLinear"] == 4 * len(layers)
    assert graphs[0].operators["DequantizeLinear"] == (4 + 6) * len(layers)
    assert 5e-4 < notes.errors["unet"] < 1e-1
    assert {item.dtype for item in store.plans[0].tensors} == {"float16", "float32"}
    assert (store.precision, store.plans[0].buckets) == ("fp8", (2,))
    assert quantise(graphs[0].model, {}) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "fp8", "capability": (8, 6)}, r"compute capability 8\.6 has no floats of 8 bits"),
        ({"capability": (7, 5)}, r"compute capability 7\.5 is too old, must be 8\.0 or later"),
    ],
)
def test_a_gpu_that_has_not_what_it_takes_is_refused(
    text: Request, flavour: Flavour, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build_engines(replace(text, **changes), flavour, Notes())


def test_a_precision_that_the_oldest_has_not_is_refused(text: Request) -> None:
    with pytest.raises(ValueError, match=r"tensorrt 8\.6\.0 builds fp16, not bf16"):
        build_engines(replace(text, precision="bf16"), Flavour("tensorrt", "8.6.0", None), Notes())


@pytest.fixture(scope="module")
def graph(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = export(network(load_model(tiny_model_dir), "text_encoder"))
    made.save(tmp_path_factory.mktemp("graphs") / "three.onnx", rows=3)
    return made.save(tmp_path_factory.mktemp("graphs") / "any.onnx")


@pytest.mark.parametrize("buckets", [(2,), (1, 3, 7)])
def test_profiles_are_read_back(flavour: Flavour, graph: Path, buckets: Sequence[int]) -> None:
    built = build(flavour, graph, buckets, ADA)
    assert built.profiles == tuple((("tokens", (bucket, 16)),) for bucket in buckets)
    assert [item.shape for item in built.tensors] == [(-1, 16), (-1, 16, 32)]
    assert len(built.plan) > 1e5


def test_what_a_watcher_raises_ends_the_build(flavour: Flavour, graph: Path) -> None:
    class Impatient(Notes):
        def advance(self, phase: str) -> None:
            raise KeyboardInterrupt

    watcher = Impatient()
    with pytest.raises(KeyboardInterrupt):
        build(flavour, graph, (1,), ADA, watcher=watcher)
    assert watcher.phases[:1] == ["Building engine"]


def test_a_file_that_is_no_graph_is_refused(flavour: Flavour, tmp_path: Path) -> None:
    file = tmp_path / "no.onnx"
    file.write_bytes(b"hello")
    with pytest.raises(BuildError, match=r"no\.onnx: cannot be read"):
        build(flavour, file, (1,), ADA)
    with pytest.raises(BuildError, match=r"gone\.onnx: cannot be read"):
        build(flavour, tmp_path / "gone.onnx", (1,), ADA)


def test_an_operator_that_tensorrt_has_not_is_named(flavour: Flavour, graph: Path, tmp_path: Path) -> None:
    import onnx

    odd = onnx.load(graph)
    next(node for node in odd.graph.node if node.op_type == "Softmax").op_type = "Hardmax2"
    onnx.save(odd, tmp_path / "odd.onnx")
    with pytest.raises(BuildError, match="Hardmax2"):
        build(flavour, tmp_path / "odd.onnx", (1,), ADA)


def test_a_gpu_that_it_does_not_know_is_refused(flavour: Flavour, graph: Path, text: Request) -> None:
    with pytest.raises(ValueError, match=r"does not support compute capability 9\.0"):
        build(flavour, graph, (1,), (9, 0))
    with pytest.raises(ValueError, match=r"does not support compute capability 9\.0"):
        build_engines(replace(text, capability=(9, 0)), flavour, Notes())


def test_a_static_graph_is_for_its_rows_alone(flavour: Flavour, graph: Path) -> None:
    three = next(graph.parent.parent.glob("graphs*/three.onnx"))
    assert build(flavour, three, (3,), ADA).profiles == ((("tokens", (3, 16)),),)
    with pytest.raises(ValueError, match=r"the graph has \[3\] rows, an engine of it cannot be for \[1, 3\]"):
        build(flavour, three, (1, 3), ADA)
