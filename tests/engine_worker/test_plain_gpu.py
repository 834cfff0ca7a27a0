"""Programs of torch in the model host, on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import torch
from plain_house import EXAMPLES, PATIENCE_S, item, numbers, open_house

from steploom_engine_worker.errors import EXIT_FATAL
from steploom_engine_worker.plain.program import FORCE_WEIGHTS_ONLY
from steploom_protos.worker.v1 import plain_pb2 as pb
from steploom_protos.worker.v1 import plain_pb2_grpc

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on a GPU")


class Pick(torch.nn.Module):
    """Rows of a table that lies on the program's device."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.arange(8.0).reshape(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x.long()].flatten(1)


def on_gpu(repository: Path, count: int = 1) -> None:
    """The examples that a script makes, and `pick`, on GPUs."""
    spec = importlib.util.spec_from_file_location("make_torch_models", EXAMPLES / "make_torch_models.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.write_torchscript(repository)
    script.write_exported(repository)
    pick = repository / "pick" / "1"
    pick.mkdir(parents=True)
    (pick.parent / "config.pbtxt").write_text(
        'backend: "pytorch" max_batch_size: 8 instance_group { kind: KIND_CPU count: 1 } '
        'input { name: "x" data_type: TYPE_INT32 dims: -1 } output { name: "y" data_type: TYPE_FP32 dims: -1 }'
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Pick()).save(str(pick / "model.pt"))  # type: ignore[no-untyped-call]
    for config in repository.glob("*/config.pbtxt"):
        config.write_text(config.read_text().replace("KIND_CPU", "KIND_GPU").replace("count: 1", f"count: {count}"))


async def test_programs_run_on_the_gpu_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORCE_WEIGHTS_ONLY, "1")
    repository = tmp_path / "repository"
    on_gpu(repository, count=2)
    before = torch.cuda.memory_allocated()
    async with open_house(repository, tmp_path) as house:
        models = await house.models()
        assert {name: model.reason for name, model in models.items() if model.reason} == {}
        assert {model.instances for model in models.values()} == {2 * torch.cuda.device_count()}
        assert torch.cuda.memory_allocated() > before
        sent = [
            await house.send("affine_exported", item([[1, 0, 0, number]]), item([[0, 0, 0, 1]])) for number in range(20)
        ]
        answers = [await house.answer(batch) for batch in sent]
        same = await house.run("identity_torchscript", item([[1, 2, 3]]), item([[4, 5, 6]]))
    found = [[numbers(answer) for answer in done.items] for done in answers]
    assert found == [[[[10 + 3 * n, 24 + 7 * n]], [[13, 27]]] for n in range(20)]
    assert [numbers(answer) for answer in same.items] == [[[1, 2, 3]], [[4, 5, 6]]]


def test_a_lost_device_ends_the_host(tmp_path: Path) -> None:
    """An index beyond a table is seen on the device, and takes the process's context with it."""
    repository = tmp_path / "repository"
    on_gpu(repository)
    address = f"unix:{tmp_path}/m.sock"
    command = [sys.executable, "-m", "steploom_engine_worker.plain", "--repository", str(repository)]
    process = subprocess.Popen(
        [*command, "--address", address, "--load", "pick"], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        with grpc.insecure_channel(address) as channel:
            stub = plain_pb2_grpc.ModelHostStub(channel)
            for description in stub.Describe(pb.DescribeRequest(), wait_for_ready=True, timeout=PATIENCE_S):
                if description.models and description.models[0].state == pb.MODEL_STATE_READY:
                    break
            wrong = pb.Item(inputs=[pb.Tensor(shape=[1, 1], data=(99).to_bytes(4, "little"))])
            batch = pb.Batch(batch_id=1, model="pick", items=[wrong])
            answers = stub.Execute(iter([pb.ExecuteBatches(batches=[batch])]), timeout=PATIENCE_S)
            with suppress(grpc.RpcError):  # the process may be sooner
                assert next(iter(answers)).done[0].error.kind == pb.ERROR_KIND_FAILED
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == EXIT_FATAL, errors
    assert "a device is lost" in errors
