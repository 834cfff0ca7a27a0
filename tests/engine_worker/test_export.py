"""Exported networks: what diffusers and transformers give, as graphs without shape arithmetic for any rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from adapted_model import add_adapter
from torch import Tensor

from steploom_common.adapter import AdapterTraits
from steploom_engine_worker.adapter import AdaptedUNet, linear_maps
from steploom_engine_worker.export.check import check
from steploom_engine_worker.export.networks import NETWORKS, UNET, Network, network
from steploom_engine_worker.export.onnx_graph import OPSET, SHAPE_OPERATORS, ExportError, Graph, export
from steploom_engine_worker.model import Model, load_model
from steploom_engine_worker.tiny_model import write_tiny_model

EXACT: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


# Two levels: export takes its time by the number of layers.
SMALL = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that takes guidance scales, and a style of another rank that changes the attention alone."""
    made = write_tiny_model(tmp_path_factory.mktemp("models") / "small", unet=SMALL)
    add_adapter(made, "few-step", seed=1, timestep_spacing="trailing")
    attention = [name for name, _ in linear_maps(load_model(made).unet) if "attn" in name]
    add_adapter(made, "style", seed=2, rank=2, names=attention, traits=AdapterTraits())
    return made


@pytest.fixture(scope="module")
def model(root: Path) -> Model:
    return load_model(root)


@pytest.fixture(scope="module")
def graphs(model: Model) -> dict[str, Graph]:
    return {name: export(network(model, name)) for name in NETWORKS}


def test_gated_rows_are_those_of_the_adapted_unet(model: Model) -> None:
    exported = network(model, UNET)
    sample, times, context, _, scales = exported.example(4)
    gates = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    adapted = AdaptedUNet(model.unet, [item.network for item in model.adapters])
    adapted.gates.segments = [(0, slice(0, 2)), (1, slice(2, 3))]
    adapted.gates.scales = scales
    with torch.no_grad():
        expected = adapted(sample.permute(0, 3, 1, 2), times, context).permute(0, 2, 3, 1)
        found = exported.module(sample, times, context, gates, scales)
    torch.testing.assert_close(found, expected, **EXACT)
    assert (found[1] - exported.module(sample, times, context, gates * 0.5, scales)[1]).abs().max() > 1e-3


def test_a_row_without_an_adapter_may_have_any_scales(model: Model) -> None:
    exported = network(model, UNET)
    sample, times, context, gates, scales = exported.example(2)
    gates[0] = 0.0
    with torch.no_grad():
        found = exported.module(sample, times, context, gates, torch.zeros_like(scales))
        expected = exported.module(sample, times, context, gates, scales)
    torch.testing.assert_close(found[0], expected[0])


def test_a_model_without_adapters_has_no_gates(tiny_model_dir: Path) -> None:
    exported = network(load_model(tiny_model_dir), UNET)
    assert [port.name for port in exported.inputs] == ["sample", "timesteps", "context"]


def original(model: Model, name: str, x: Tensor) -> Tensor:
    """What the libraries' own modules give, channels last."""
    vae: Any = model.vae
    found: Tensor
    if name == "text_encoder":
        found = model.text_encoder(x)[0]
        return found
    x = x.permute(0, 3, 1, 2)
    if name == "vae_encoder":
        found = vae.encode(x).latent_dist.mode()
    else:
        found = vae.decode(x / vae.config.scaling_factor, return_dict=False)[0]
    return found.permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != UNET])
def test_the_other_networks_are_the_originals(model: Model, name: str) -> None:
    exported = network(model, name)
    inputs = exported.example(2)
    with torch.no_grad():
        torch.testing.assert_close(exported.module(*inputs), original(model, name, *inputs), **EXACT)


def test_exporting_leaves_the_model_as_it_was(model: Model) -> None:
    kinds = {type(part).__module__.split(".")[0] for part in (*model.unet.modules(), *model.vae.modules())}
    assert kinds == {"diffusers", "torch"}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_graph_gives_what_torch_gives_for_any_number_of_rows(
    model: Model, graphs: dict[str, Graph], tmp_path: Path, name: str, rows: int
) -> None:
    file = graphs[name].save(tmp_path / "any.onnx")
    assert check(file, graphs[name].network, network(model, name), rows) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_is_folded_and_of_what_all_builders_read(graphs: dict[str, Graph], tmp_path: Path, name: str) -> None:
    graph = graphs[name]
    assert not SHAPE_OPERATORS & set(graph.operators)
    assert graph.nodes_after < 0.55 * graph.nodes_before
    assert sum(graph.operators.values()) == graph.nodes_after
    written = onnx.load(graph.save(tmp_path / "three.onnx", rows=3))
    assert "InstanceNormalization" not in graph.operators, "8.6 has it only in a plugin"
    assert [(item.domain, item.version) for item in written.opset_import] == [("", OPSET)]
    for ports, values in ((graph.network.inputs, written.graph.input), (graph.network.outputs, written.graph.output)):
        shapes = [tuple(size.dim_value for size in value.type.tensor_type.shape.dim) for value in values]
        assert [value.name for value in values] == [port.name for port in ports]
        assert shapes == [(3, *port.shape) for port in ports]


@pytest.mark.parametrize("name", ["text_encoder", UNET])
def test_a_graph_in_half_precision_is_off_by_its_rounding_alone(
    root: Path, model: Model, tmp_path: Path, name: str
) -> None:
    half = network(load_model(root, torch.float16), name)
    graph = export(half)
    file = graph.save(tmp_path / "half.onnx")
    assert 1e-5 < check(file, half, network(model, name)) < 1e-2
    kept = {port.name: port.dtype for port in half.inputs if port.dtype == torch.float32}
    assert set(kept) <= {"timesteps", "gates", "scales"}
    assert half.outputs[0].dtype == torch.float16


def test_a_graph_that_differs_from_torch_is_refused(model: Model, graphs: dict[str, Graph], tmp_path: Path) -> None:
    file = graphs["text_encoder"].save(tmp_path / "wrong.onnx")
    wrong = onnx.load(file)
    weight = next(item for item in wrong.graph.initializer if len(item.dims) == 2)
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed[:, 0] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(wrong, file)
    encoder = graphs["text_encoder"].network
    with pytest.raises(ExportError, match=r"text_encoder: the graph is off by .* of what torch gives, may be 1e-04"):
        check(file, encoder, network(model, "text_encoder"))


class Mixing(torch.nn.Module):
    """Rows that see each other."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1) * 2


def test_a_network_whose_rows_do_not_stay_apart_is_refused(graphs: dict[str, Graph]) -> None:
    ports = graphs["vae_decoder"].network
    with pytest.raises(ExportError, match="which has not the rows in front"):
        export(Network("mixing", Mixing(), ports.inputs, ports.outputs))


def test_a_text_encoder_with_a_mask_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.text_encoder.config, "use_attention_mask", True, raising=False)
    with pytest.raises(ValueError, match="reads an attention mask"):
        network(model, "text_encoder")
