"""Each output is the input at its place. A batch may be told to take a time."""

from __future__ import annotations

import time


class Model:
    """See docs/plain-models.md for what the host asks of this class."""

    def __init__(self, config, folder):  # noqa: ARG002
        self._names = [(config.output[at].name, item.name) for at, item in enumerate(config.input)]
        self._delay_ms = _number(config, "delay_ms")
        self._delay_ms_per_item = _number(config, "delay_ms_per_item")

    def infer(self, inputs, parameters):
        """inputs: arrays by name, [rows, …]; parameters: a dict for each request, which may say how long it takes."""
        delay_ms = max(float(given.get("delay_ms", self._delay_ms)) for given in parameters)
        for given, rows in zip(parameters, parameters.rows, strict=True):
            delay_ms += rows * float(given.get("delay_ms_per_item", self._delay_ms_per_item))
        if delay_ms > 0:
            time.sleep(delay_ms / 1000)
        return {output: inputs[name] for output, name in self._names}


def _number(config, name):
    return float(config.parameters[name].string_value) if name in config.parameters else 0.0
