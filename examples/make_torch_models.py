"""Writes small models that are programs of torch into a model repository: python examples/make_torch_models.py FOLDER

identity_torchscript gives back what it gets (TorchScript). affine_exported is a linear layer (torch.export), with the
batch's size left open.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

MAX_BATCH_SIZE = 64

CONFIG = """\
name: "{name}"
{backend}
max_batch_size: {max_batch_size}
input [ {{ name: "x", data_type: TYPE_FP32, dims: [ {inputs} ] }} ]
output [ {{ name: "y", data_type: TYPE_FP32, dims: [ {outputs} ] }} ]
dynamic_batching {{ }}
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
# A program of torch is slow at first: it is run before it serves.
model_warmup [ {{
  name: "first"
  count: 3
  inputs {{ key: "x" value {{ data_type: TYPE_FP32, dims: [ 4 ], random_data: true }} }}
}} ]
"""


class Identity(torch.nn.Module):
    """Its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Affine(torch.nn.Module):
    """A linear layer from 4 to 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(8.0).reshape(2, 4))
            self.layer.bias.copy_(torch.tensor([10.0, 20.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def write_torchscript(repository: Path) -> None:
    """REPOSITORY/identity_torchscript."""
    file = _folder(repository, "identity_torchscript", 'platform: "pytorch_libtorch"', -1, -1) / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are many such files, and torch reads them
        torch.jit.script(Identity().eval()).save(str(file))


def write_exported(repository: Path) -> None:
    """REPOSITORY/affine_exported."""
    file = _folder(repository, "affine_exported", 'backend: "pytorch"', 4, 2) / "model.pt2"
    rows = torch.export.Dim("rows", min=1, max=MAX_BATCH_SIZE)
    program = torch.export.export(Affine().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: rows},))
    torch.export.save(program, str(file))


def _folder(repository: Path, name: str, backend: str, inputs: int, outputs: int) -> Path:
    """A model's folder with its config; returns that of version 1."""
    folder = repository / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(name=name, backend=backend, max_batch_size=MAX_BATCH_SIZE, inputs=inputs, outputs=outputs)
    (folder.parent / "config.pbtxt").write_text(text)
    return folder


def main() -> None:
    """Entry point."""
    repository = Path(sys.argv[1])
    write_torchscript(repository)
    write_exported(repository)


if __name__ == "__main__":
    main()
