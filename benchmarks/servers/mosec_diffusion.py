"""The embedded model behind MOSEC, request by request: a batch is formed once and run to its end.

It runs in Steploom's own environment, which has torch and the networks, with MOSEC's beside it. The networks, the
merged adapter and the sampler are the very ones that Steploom's engine has; what differs is who decides which rows run
together. A body is a line of JSON and a PNG, an answer a PNG.
"""

from __future__ import annotations

import io
import json
import os
import sys
import sysconfig
from itertools import groupby
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_MOSEC = _ROOT / ".venv-peer-mosec"
sys.path.append(str(_MOSEC / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"))  # behind our own

# as Steploom's worker has it: threads of torch that wait sleep, and take no core from others
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import mosec.runtime
import numpy as np
import torch
from bench_model import Model as Counter
from bench_model import wanted
from mosec import Runtime, Server, Worker
from PIL import Image

from steploom_distill.sampling import Editor, Guidance
from steploom_distill.student import Student
from steploom_engine_worker.adapter import ALL_ROWS, AdaptedUNet, load_adapter
from steploom_engine_worker.adapter_files import read_adapter
from steploom_engine_worker.model_files import weights_sha256
from steploom_engine_worker.schedule import Sampler

_MODEL = _ROOT / "models" / "avatar-edit"
_ADAPTER = "few-step"

Order = dict[str, Any]  # steps, adapter, instruction, seed; and the picture, [3, side, side] in 0..1


class Pipeline(Worker):  # type: ignore[misc]
    """One process that has the model."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(os.cpu_count() or 1)
        torch.set_flush_denormal(True)
        self._editor = Editor.load(_MODEL, torch.device("cpu"))
        self._student = _student(self._editor)
        defaults = json.loads((_MODEL / "steploom.json").read_text())["defaults"]
        self._guidance = Guidance(defaults["guidance_scale"], defaults["image_guidance_scale"])
        self._counter = Counter()
        warm = {"instruction": "", "seed": 0, "picture": np.zeros((3, 128, 128), np.float32)}
        self._run([{**warm, "steps": 3, "adapter": _ADAPTER}])
        self._run([{**warm, "steps": 2, "adapter": ""}])

    def deserialize(self, data: bytes) -> Order:
        """From the wire."""
        head, _, png = data.partition(b"\n")
        order: Order = json.loads(head)
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float32) / 255
        order["picture"] = pixels.transpose(2, 0, 1)
        return order

    def serialize(self, data: Any) -> bytes:
        """To the wire: [3, side, side] in 0..1 as a PNG."""
        file = io.BytesIO()
        Image.fromarray((data.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    def forward(self, data: list[Order] | Order) -> Any:
        """Requests of one kind run together, those of few steps first."""
        if not isinstance(data, list):
            return self._run([data])[0]
        answers: list[Any] = [None] * len(data)
        order = sorted(range(len(data)), key=lambda at: _kind(data[at]))
        for _, group in groupby(order, key=lambda at: _kind(data[at])):
            places = list(group)
            for place, picture in zip(places, self._run([data[at] for at in places]), strict=True):
                answers[place] = picture
        return answers

    def _run(self, orders: list[Order]) -> list[Any]:
        self._counter.run(np.zeros((len(orders), 1), np.uint8))
        steps, adapter = _kind(orders[0])
        pictures = self._editor.edit(
            torch.from_numpy(np.stack([order["picture"] for order in orders])),
            [order["instruction"] for order in orders],
            steps,
            self._guidance,
            seed=orders[0]["seed"],
            sampler=Sampler.DDIM,
            student=self._student if adapter else None,
        )
        return list(pictures.numpy())


def _kind(order: Order) -> tuple[int, str]:
    return order["steps"], order["adapter"]


def _student(editor: Editor) -> Student:
    """The adapter, merged into weights of its own as in Steploom's engine."""
    files = read_adapter(_MODEL / "adapters" / _ADAPTER, weights_sha256(_MODEL))
    unet = editor.model.unet
    network = AdaptedUNet(unet, [load_adapter(unet, files)], is_merged=True).eval()
    network.gates.segments = [(0, ALL_ROWS)]
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Student(files.folder, files.manifest, network)


if __name__ == "__main__":
    said = wanted()
    sys.argv = [
        *sys.argv[:1],
        *("--address", "127.0.0.1", "--port", str(said["port"]), "--timeout", "600000", "--log-level", "warning"),
    ]
    # MOSEC looks for its program beside the interpreter, which is ours here
    mosec.runtime.get_mosec_path = lambda: _MOSEC / "bin" / "mosec"
    server = Server()
    batching = {"max_batch_size": said["max_batch"], "max_wait_time": max(1, round(said["delay_ms"]))}
    if said["options"].get("a process each"):  # for each tier; between them the machine divides its cores
        server.register_runtime({route: [Runtime(Pipeline, timeout=600, **batching)] for route in ("/free", "/pro")})
    else:
        both = Runtime(Pipeline, timeout=600, **batching)
        server.register_runtime({"/free": [both], "/pro": [both]})
    server.run()
