"""A graph in its blocks, and ONNX files for builders on other machines, each built within a limit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from steploom_engine_worker.export import __main__ as export_command
from steploom_engine_worker.export.__main__ import main as export_main
from steploom_engine_worker.export.blocks import blocks
from steploom_engine_worker.export.networks import UNET, network
from steploom_engine_worker.export.onnx_graph import Graph, export, save
from steploom_engine_worker.model import load_model
from steploom_engine_worker.tensorrt.build_graphs import main as build_main
from steploom_engine_worker.tensorrt.plan_store import open_store
from steploom_engine_worker.tiny_model import write_tiny_model

SMALL = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "small", unet=SMALL)


@pytest.fixture(scope="module")
def graph(root: Path) -> Graph:
    return export(network(load_model(root), UNET))


def run(file: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def test_blocks_one_after_the_other_are_the_network(graph: Graph, tmp_path: Path) -> None:
    whole = graph.save(tmp_path / "whole.onnx")
    parts = blocks(graph.model)
    assert list(parts)[:3] == ["down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "down_blocks.0.downsamplers.0"]
    assert {name.split(".")[0] for name in parts} == {"down_blocks", "mid_block", "up_blocks"}
    assert len(parts) == 14
    transformer = parts["down_blocks.0.attentions.0"].graph
    assert (len(transformer.inputs), len(transformer.outputs)) == (2, 1), "a picture and the text, a picture"
    assert 0.9 * graph.nodes_after < sum(part.graph.num_nodes() for part in parts.values()) < graph.nodes_after

    # the first block alone, fed with what the whole network makes of it, gives what the second one reads
    import onnx

    opened = onnx.load(whole)
    first, second = (save(parts[name], tmp_path / f"{name}.onnx") for name in list(parts)[:2])
    wanted = {item.name for file in (first, second) for item in onnx.load(file).graph.input}
    known = {item.name for item in opened.graph.input}
    opened.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(wanted - known))
    onnx.save(opened, tmp_path / "open.onnx")
    inputs = {
        port.name: value.numpy() for port, value in zip(graph.network.inputs, graph.network.example(2), strict=True)
    }
    seen = run(tmp_path / "open.onnx", **inputs) | inputs
    found = run(first, **{item.name: seen[item.name] for item in onnx.load(first).graph.input})
    shared = set(found) & wanted
    assert shared
    for name in shared:
        np.testing.assert_allclose(found[name], seen[name], rtol=1e-4, atol=1e-5)


def test_files_are_written_for_the_rows_that_are_asked_for(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(root), "--out", str(tmp_path), "--only", "text_encoder", "--rows", "1", "4", "--dtype", "float32"]
    assert export_main(arguments) == 0
    assert "text_encoder: " in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "graphs.json",
        "text_encoder.1.onnx",
        "text_encoder.4.onnx",
    ]
    (found,) = run(tmp_path / "text_encoder.4.onnx", tokens=np.zeros((4, 16), np.int32)).values()
    assert found.shape == (4, 16, 32)


def test_blocks_are_written_alone(root: Path, graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_command, "export", lambda _: graph)
    assert export_main([str(root), "--out", str(tmp_path), "--only", UNET, "--rows", "3", "--blocks"]) == 0
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names[0] == "unet.down_blocks.0.attentions.0.3.onnx"
    assert len(names) == 14


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "model_index.json: is missing" in capsys.readouterr().err


class TestBuilding:
    @pytest.fixture(autouse=True)
    def _needs_a_builder(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="builds engines with tensorrt_rtx, which is not installed here")

    def build(self, folder: Path, *files: Path, **options: str) -> tuple[int, list[dict[str, object]]]:
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        code = build_main(
            [*map(str, files), *words, "--capability", "8.9", "--logs", str(folder), "--json", str(folder / "all.json")]
        )
        return code, json.loads((folder / "all.json").read_text())

    def test_each_file_is_timed_and_its_log_kept(self, root: Path, tmp_path: Path) -> None:
        export_main([str(root), "--out", str(tmp_path), "--only", "text_encoder", "--rows", "4"])
        file, wrong = tmp_path / "text_encoder.4.onnx", tmp_path / "wrong.onnx"
        wrong.write_bytes(b"hello")
        code, (bad, good) = self.build(tmp_path, wrong, file, buckets="4", out=str(tmp_path / "engines"))
        assert code == 1
        assert "ended with 1" in str(bad["problem"])
        assert "cannot be read" in str(bad["problem"])
        assert (tmp_path / "engines" / str(good["plan"])).stat().st_size == good["num_bytes"]
        assert (tmp_path / "text_encoder.4.log").read_text()

    def test_engines_of_whole_networks_have_a_manifest(self, root: Path, tmp_path: Path) -> None:
        export_main([str(root), "--out", str(tmp_path), "--only", "text_encoder", "--rows", "2"])
        export_main([str(root), "--out", str(tmp_path), "--only", "text_encoder", "--rows", "4"])
        out = tmp_path / "engines"
        for rows in ("2", "4"):
            code, (result,) = self.build(tmp_path, tmp_path / f"text_encoder.{rows}.onnx", buckets=rows, out=str(out))
            assert code == 0, result
        store = open_store(out)
        assert [plan.buckets for plan in store.of("text_encoder")] == [(2,), (4,)]
        assert store.model_digest == load_model(root).digest
        assert (store.precision, store.adapters) == ("fp16", ())
        assert all(store.read(plan) for plan in store.plans)

    def test_one_that_does_not_end_is_ended(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "endless.onnx"
        file.write_bytes(b"")
        code, (result,) = self.build(tmp_path, file, buckets="1", timeout="0.01")
        assert code == 1
        assert str(result["problem"]).startswith("has not ended in 0 s; last: ")
        assert "endless.onnx: has not ended" in capsys.readouterr().out
