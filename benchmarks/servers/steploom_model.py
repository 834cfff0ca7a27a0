"""The model as a plain model of Steploom: the batch comes as one array."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import bench_model


class Model:
    """One instance."""

    def __init__(self, config: Any, folder: Any) -> None:  # noqa: ARG002
        self._model = bench_model.Model()

    def infer(self, inputs: dict[str, bench_model.Items], parameters: Any) -> dict[str, bench_model.Items]:  # noqa: ARG002
        """One batch."""
        return {"OUTPUT0": self._model.run(inputs["INPUT0"])}
