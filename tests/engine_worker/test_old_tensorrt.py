"""How an engine is asked for where TensorRT is 8.6, which builds on a GPU alone: what it is told, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_tensorrt import Network, Recorded

from steploom_engine_worker.tensorrt.builder import BuildError, BuildSettings, build
from steploom_engine_worker.tensorrt.plan_store import TensorSpec

H100 = (9, 0)
GRAPH = Path("unet.onnx")


def network(recorded: Recorded) -> Network:
    assert recorded.network is not None
    return recorded.network


def test_half_precision_is_allowed_but_for_what_is_computed_of_timesteps() -> None:
    recorded = Recorded()
    built = build(recorded.flavour, GRAPH, (3,), H100)
    assert network(recorded).flags == 1, "explicit batch"
    assert recorded.config.flags == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    float32, float16 = recorded.flavour.module.float32, recorded.flavour.module.float16
    kept = {layer.name: (layer.precision, layer.output_types) for layer in network(recorded).layers}
    assert kept["multiply"] == kept["sine"] == (float32, {0: float32})
    assert kept["convolution"] == (float16, {})
    assert {name for name, (precision, _) in kept.items() if precision is None} == {"table", "other table", "cast"}
    assert set(built.tensors) == {
        TensorSpec("sample", "float16", (-1, 8, 8, 8), is_input=True),
        TensorSpec("timesteps", "float32", (-1,), is_input=True),
        TensorSpec("prediction", "float16", (-1, 8, 8, 4), is_input=False),
    }
    assert (built.plan, built.num_layers) == (b"an engine", 6)


def test_settings_are_passed_on() -> None:
    recorded = Recorded()
    settings = BuildSettings(optimization_level=1, workspace_mb=512, heuristic=True, without_libraries=True)
    build(recorded.flavour, GRAPH, (3,), H100, settings)
    config = recorded.config
    assert (config.builder_optimization_level, config.tactic_sources) == (1, 0)
    assert config.memory == [("WORKSPACE", 512 << 20)]
    assert "ENABLE_TACTIC_HEURISTIC" in config.flags


def test_by_default_libraries_and_memory_are_the_builders_to_choose() -> None:
    recorded = Recorded()
    build(recorded.flavour, GRAPH, (3,), H100)
    assert (recorded.config.builder_optimization_level, recorded.config.tactic_sources) == (3, None)
    assert recorded.config.memory == []


@pytest.mark.parametrize(("kept", "after"), [(None, b"+"), (b"mine", b"mine+"), (b"of another GPU", b"+")])
def test_timings_are_kept_and_foreign_ones_given_up(tmp_path: Path, kept: bytes | None, after: bytes) -> None:
    cache = tmp_path / "timing.cache"
    if kept is not None:
        cache.write_bytes(kept)
    build(Recorded().flavour, GRAPH, (3,), H100, timing_cache=cache)
    assert cache.read_bytes() == after


def test_what_it_says_is_in_the_error(tmp_path: Path) -> None:
    heard: list[str] = []
    cache = tmp_path / "timing.cache"
    with pytest.raises(BuildError, match=r"tensorrt 8\.6\.0 builds no engine of unet\.onnx: no kernel for convolution"):
        build(Recorded(fails=True).flavour, GRAPH, (3,), H100, timing_cache=cache, hear=heard.append)
    assert heard == ["a word", "no kernel for convolution"]
    assert not cache.exists()


def test_it_has_no_other_precision() -> None:
    assert list(Recorded().flavour.precisions) == ["fp16"]
