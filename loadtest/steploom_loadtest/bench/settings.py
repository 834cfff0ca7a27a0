"""steploom.toml of the systems that are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steploom_loadtest.bench.outcome import Options

# About what the embedded model takes on two cores of a CPU; sleeping, so that the rest of the system has them.
_CPU_LIKE: dict[str, Any] = {
    "encode_s": 0.010,
    "encode_item_s": 0.008,
    "denoise_s": 0.008,
    "denoise_row_s": 0.007,
    "decode_s": 0.004,
    "decode_item_s": 0.022,
    "adapters": ["few-step"],
}


def model_tables(options: Options, **batcher: Any) -> dict[str, Mapping[str, Any]]:
    """The model that is asked for, or a fake one of a CPU's speed, and settings of the batcher."""
    worker: dict[str, Any] = {"engine": options.engine}
    if options.is_fake:
        worker["fake"] = {
            name: options.fake_times * value if isinstance(value, float) else value for name, value in _CPU_LIKE.items()
        }
    elif options.model:
        worker["model"] = options.model
    return {"worker": worker, "batcher": batcher}


def zero_cost_tables() -> dict[str, Mapping[str, Any]]:
    """An engine that takes no time: what is left is the control plane."""
    return {"worker": {"engine": "fake"}, "gateway": {"arena_blocks": 256}}
