"""The model in the form of Triton's Python backend; requests of a batch are put together, as a model wants them."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as backend
from bench_model import Model


class TritonPythonModel:
    """One instance."""

    def initialize(self, arguments: dict[str, str]) -> None:  # noqa: ARG002
        """Called once in the stub's process."""
        self._model = Model()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One batch."""
        inputs = [backend.get_input_tensor_by_name(request, "INPUT0").as_numpy() for request in requests]
        outputs = self._model.run(np.concatenate(inputs))
        answers, at = [], 0
        for given in inputs:
            tensor = backend.Tensor("OUTPUT0", outputs[at : at + len(given)])
            answers.append(backend.InferenceResponse([tensor]))
            at += len(given)
        return answers
