"""Programs of torch in the model host: TorchScript and torch.export, on a CPU."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_house import EXAMPLES, item, numbers, open_house

from steploom_engine_worker.plain.errors import BrokenModel, WrongOutput
from steploom_engine_worker.plain.program import FORCE_WEIGHTS_ONLY, Origin, Parameters, Program
from steploom_engine_worker.plain.program_loader import load_program
from steploom_engine_worker.plain.repository import Repository
from steploom_engine_worker.plain.spec import Placement
from steploom_protos.inference import model_config_pb2
from steploom_protos.worker.v1 import plain_pb2 as pb

CPU = Placement(model_config_pb2.ModelInstanceGroup.KIND_CPU)

Load = Callable[..., Program]


@pytest.fixture(autouse=True)
def weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the process sets it at its start."""
    monkeypatch.setenv(FORCE_WEIGHTS_ONLY, "1")


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a program and a config, and loads them."""

    def write(module: torch.nn.Module | torch.export.ExportedProgram | bytes, config: str, file: str = "") -> Program:
        folder = tmp_path / "program" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "config.pbtxt").write_text(f'backend: "pytorch"\n{config}')
        if isinstance(module, bytes):
            (folder / (file or "model.pt2")).write_bytes(module)
        elif isinstance(module, torch.export.ExportedProgram):
            torch.export.save(module, folder / "model.pt2")
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.jit.script(module.eval()).save(str(folder / "model.pt"))  # type: ignore[no-untyped-call]
        source = Repository(tmp_path).read("program")
        return load_program(Origin(source.spec, source.backend, source.files[1], "never"), CPU)

    return write


def tensors(kind: str, *names: str, datatype: str = "TYPE_FP32") -> str:
    return "\n".join(f'{kind} [ {{ name: "{name}", data_type: {datatype}, dims: [ -1 ] }} ]' for name in names)


def run(program: Program, **inputs: Any) -> dict[str, Any]:
    return dict(program.infer(inputs, Parameters([{}], [1])))


class Subtract(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left - right, left + right


class InPlace(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


class Same(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


ONE = tensors("input", "x") + tensors("output", "y")
ROW = np.array([[1, 2, 3]], np.float32)


async def test_the_examples_that_a_script_makes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_torch_models", EXAMPLES / "make_torch_models.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    repository = tmp_path / "repository"
    script.write_torchscript(repository)
    script.write_exported(repository)
    config = repository / "affine_exported" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1 }", "count: 6 }"))  # they are read beside each other
    async with open_house(repository, tmp_path) as house:
        same = await house.run("identity_torchscript", item([[1, 2, 3]]), item([[4, 5, 6], [7, 8, 9]]))
        affine = await house.run("affine_exported", item([[1, 0, 0, 0]]), item([[0, 0, 0, 1]]), item([[1, 1, 1, 1]]))
        one = await house.run("affine_exported", item([[0, 1, 0, 0]]))
    assert [numbers(answer) for answer in same.items] == [[[1, 2, 3]], [[4, 5, 6], [7, 8, 9]]]
    assert [numbers(answer) for answer in affine.items] == [[[10, 24]], [[13, 27]], [[16, 42]]]
    assert [numbers(answer) for answer in one.items] == [[[11, 25]]]


async def test_a_failing_program_fails_its_batch(tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture) -> None:
    load(Subtract(), tensors("input", "left", "right") + tensors("output", "a", "b") + "max_batch_size: 4")
    repository = tmp_path / "program"
    repository.rename(tmp_path / "p")
    (tmp_path / "repository").mkdir()
    (tmp_path / "p").rename(tmp_path / "repository" / "p")
    async with open_house(tmp_path / "repository", tmp_path) as house:
        done = await house.run("p", item([[1, 2]], [[1, 2, 3]]))
        assert done.error.kind == pb.ERROR_KIND_FAILED
        assert "size" not in done.error.message
        assert numbers((await house.run("p", item([[3, 2]], [[1, 2]]))).items[0]) == [[2, 0]]
    assert done.error.error_id in caplog.text


@pytest.mark.parametrize(
    "names",
    [("left", "right"), ("right", "left"), ("A__0", "B__1"), ("B__1", "A__0")],
    ids=lambda names: "-".join(names),
)
@pytest.mark.parametrize("is_exported", [False, True], ids=["script", "export"])
def test_inputs_find_their_arguments(load: Load, names: tuple[str, str], is_exported: bool) -> None:
    """By name, or by the number in the name; never by their order in the config."""
    example = (torch.zeros(1, 3), torch.zeros(1, 3))
    module = torch.export.export(Subtract(), example) if is_exported else Subtract()
    program = load(module, tensors("input", *names) + tensors("output", "difference", "sum"))
    left, right = ("left", "right") if "left" in names else ("A__0", "B__1")
    outputs = run(program, **{left: ROW, right: ROW * 2})
    assert outputs["difference"].tolist() == (-ROW).tolist()
    assert outputs["sum"].tolist() == (ROW * 3).tolist()


def test_an_exported_program_takes_arguments_by_name(load: Load) -> None:
    exported = torch.export.export(Subtract(), (torch.zeros(1, 3),), {"right": torch.zeros(1, 3)})
    program = load(exported, tensors("input", "right", "left") + tensors("output", "difference", "sum"))
    assert run(program, left=ROW, right=ROW * 2)["difference"].tolist() == (-ROW).tolist()


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        (f"TYPE_{kind}{bits}", f"{letter}{bits // 8}")
        for kind, letter in (("INT", "i"), ("UINT", "u"))
        for bits in (8, 16, 32, 64)
    ]
    + [("TYPE_FP16", "f2"), ("TYPE_FP32", "f4"), ("TYPE_FP64", "f8"), ("TYPE_BOOL", "?")],
)
def test_every_datatype_goes_in_and_out(load: Load, datatype: str, dtype: str) -> None:
    program = load(Same(), tensors("input", "x", datatype=datatype) + tensors("output", "y", datatype=datatype))
    array = np.array([[0, 1, 1]]).astype(dtype)
    output = run(program, x=array)["y"]
    assert output.dtype == array.dtype
    assert output.tolist() == array.tolist()


def test_bf16_is_its_bits(load: Load) -> None:
    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.dtype == torch.bfloat16
            return x / 2

    config = tensors("input", "x", datatype="TYPE_BF16") + tensors("output", "y", datatype="TYPE_BF16")
    program = load(Half(), config)
    given = torch.tensor([[1.5, -3.0]], dtype=torch.bfloat16)
    output = run(program, x=given.view(torch.int16).numpy().view(np.uint16))["y"]
    assert output.dtype == np.uint16
    assert torch.from_numpy(output.view(np.int16)).view(torch.bfloat16).tolist() == [[0.75, -1.5]]


@pytest.mark.parametrize("size", [1, 8])
def test_a_program_may_write_to_its_inputs_and_to_nobody_elses(load: Load, size: int) -> None:
    """The bytes of a message are its own; of those of length 1 there is one for the whole of Python."""
    program = load(
        InPlace(), tensors("input", "x", datatype="TYPE_UINT8") + tensors("output", "y", datatype="TYPE_UINT8")
    )
    data = bytes([5] * size)
    assert run(program, x=np.frombuffer(data, np.uint8).reshape(1, size))["y"].tolist() == [[6] * size]
    assert list(bytes([5])) == [5]
    arena = bytearray([7] * 4)
    shared = np.frombuffer(memoryview(arena).toreadonly(), np.uint8).reshape(1, 4)
    assert run(program, x=shared)["y"].tolist() == [[8] * 4]
    assert arena == bytes([7] * 4)


def test_an_input_of_one_request_is_not_copied(load: Load) -> None:
    class Address(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    program = load(Address(), ONE)
    array = np.frombuffer(ROW.tobytes(), np.float32).reshape(1, 3)
    assert run(program, x=array)["y"].ctypes.data == array.ctypes.data


def test_outputs_by_name(load: Load) -> None:
    class Named(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"double": x * 2, "extra": x, "same": x}

    program = load(Named(), tensors("input", "x") + tensors("output", "same", "double"))
    assert {name: array.tolist() for name, array in run(program, x=ROW).items()} == {
        "same": ROW.tolist(),
        "double": (ROW * 2).tolist(),
    }
    program = load(Named(), tensors("input", "x") + tensors("output", "missing"))
    with pytest.raises(WrongOutput, match="output 'missing' is missing, the program gave: double, extra, same"):
        run(program, x=ROW)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (tensors("output", "y", "z"), "the program gave 1 outputs, must give 2"),
        (tensors("output", "y", datatype="TYPE_FP16"), "output 'y' is torch.float32, must be torch.float16"),
    ],
)
def test_outputs_that_are_not_the_configs(load: Load, outputs: str, message: str) -> None:
    with pytest.raises(WrongOutput, match=message):
        run(load(Same(), tensors("input", "x") + outputs), x=ROW)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tensors("input", "x", "z") + tensors("output", "y"), "input: has 2 entries, must have 1, for x"),
        (
            ONE.replace("dims", "optional: true, dims", 1),
            "input.optional: is true, must be false for programs of torch",
        ),
        (tensors("input", "x", datatype="TYPE_STRING") + tensors("output", "y"), "'x' is TYPE_STRING"),
    ],
)
def test_a_config_that_is_not_the_programs(load: Load, config: str, message: str) -> None:
    with pytest.raises(BrokenModel, match=message):
        load(Same(), config)


def test_two_inputs_need_names_that_say_which_is_which(load: Load) -> None:
    config = tensors("input", "a", "b") + tensors("output", "y", "z")
    with pytest.raises(
        BrokenModel, match="has the names a, b, must have those of the program's arguments, left, right"
    ):
        load(Subtract(), config)


@pytest.mark.parametrize("file", ["model.pt", "model.pt2"])
@pytest.mark.parametrize("data", [b"", b"no program", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "zip"])
def test_a_file_that_is_no_program(load: Load, data: bytes, file: str) -> None:
    with pytest.raises(BrokenModel, match=f"^{file}: "):
        load(data, ONE, file)


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import sys; sys.modules['exploded'] = sys",))


def rewritten(archive: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """A zip with other files in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            data = change(name, source.read(name))
            if data is not None:
                target.writestr(name, data)
    return made.getvalue()


def with_payload(kind: str, name: str, data: bytes) -> Callable[[str, bytes], bytes | None]:
    """One payload of an exported program becomes a pickle."""

    def change(path: str, before: bytes) -> bytes | None:
        if path.endswith(f"{kind}_config.json"):
            config = json.loads(before)
            payload = next(iter(config["config"].values()))
            payload["use_pickle"], payload["path_name"] = True, name
            return json.dumps(config).encode()
        return data if f"/data/{kind}/" in path else before

    return change


class Weighted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.constant = torch.arange(3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.constant


@pytest.fixture
def exported() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(Weighted(), (torch.zeros(1, 3),)), file)
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save(Bomb(), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "name"), [("weights", "weight_0"), ("constants", "tensor_0"), ("constants", "opaque_obj_0")]
)
def test_pickles_in_an_exported_program_are_refused(load: Load, exported: bytes, kind: str, name: str) -> None:
    data = pickle.dumps(Bomb()) if name.startswith("opaque") else pickled()
    with pytest.raises(BrokenModel, match="as a pickle, which is not read; must hold plain tensors alone"):
        load(rewritten(exported, with_payload(kind, name, data)), ONE)
    assert "exploded" not in sys.modules


@pytest.mark.parametrize("place", ["sample_inputs/model.pt", "weights/model.pt", "constants/model.pt"])
def test_no_code_in_a_file_that_torch_unpickles_is_run(load: Load, exported: bytes, place: str) -> None:
    """Example inputs, and weights as older versions wrote them: torch falls back to unpickling whatever it finds."""

    def change(path: str, before: bytes) -> bytes | None:
        if path.endswith("sample_inputs/model.pt"):
            return pickled() if place in path else before
        if path.endswith(f"{place.split('/')[0]}/model_{place.split('/')[0]}_config.json"):
            return None
        return before

    archive = rewritten(exported, change)
    if "sample_inputs" not in place:
        made = io.BytesIO(archive)
        with zipfile.ZipFile(made, "a") as target:
            root = target.namelist()[0].split("/")[0]
            target.writestr(f"{root}/data/{place}", pickled())
        archive = made.getvalue()
    with pytest.raises(BrokenModel, match=r"^model.pt2: "):
        load(archive, ONE)
    assert "exploded" not in sys.modules


def test_an_exported_program_is_not_read_where_pickles_might_be(
    load: Load, exported: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FORCE_WEIGHTS_ONLY)
    with pytest.raises(BrokenModel, match="is read only where the environment has TORCH_FORCE_WEIGHTS_ONLY_LOAD=1"):
        load(exported, ONE)


def test_a_pickle_in_place_of_torchscript_is_not_run(load: Load) -> None:
    with pytest.raises(BrokenModel, match=r"^model.pt: "):
        load(pickled(), ONE, "model.pt")
    assert "exploded" not in sys.modules
