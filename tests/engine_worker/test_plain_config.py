"""A model repository and its config.pbtxt: every bound is held, and every breach is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from plain_house import EXAMPLES, ONE_INPUT, write_model

from steploom_engine_worker.plain.errors import BrokenModel, UnknownModel
from steploom_engine_worker.plain.model_config import completed
from steploom_engine_worker.plain.names import is_file_name, is_model_name, version_of
from steploom_engine_worker.plain.placement import placements
from steploom_engine_worker.plain.repository import Repository, Source
from steploom_engine_worker.plain.spec import Placement
from steploom_protos.inference import model_config_pb2 as pb

INPUT = 'input [ { name: "x", data_type: TYPE_FP32, dims: [ -1 ] } ]'
OUTPUT = 'output [ { name: "y", data_type: TYPE_FP32, dims: [ -1 ] } ]'
WARM = (
    'model_warmup [ { name: "w", inputs { key: "x" value { data_type: TYPE_FP32, dims: [ 2 ], zero_data: true } } } ]'
)
Kind = pb.ModelInstanceGroup


def parsed(text: str) -> pb.ModelConfig:
    return text_format.Parse(text, pb.ModelConfig())


def refusal(text: str) -> str:
    with pytest.raises(BrokenModel) as caught:
        completed(parsed(text), "model")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('name: "other"', "name: is 'other', must be that of the folder, 'model', or empty"),
        ('platform: "onnxruntime_onnx"', "platform: is 'onnxruntime_onnx', must be pytorch_libtorch or empty"),
        ('backend: "tensorrt"', "backend: is 'tensorrt', must be python or pytorch"),
        (
            'platform: "pytorch_libtorch" backend: "python"',
            "platform: is pytorch_libtorch, must be empty with the backend python",
        ),
        ("max_batch_size: -1", "max_batch_size: is -1, must be 0 to 65536"),
        ("max_batch_size: 65537", "max_batch_size: is 65537, must be 0 to 65536"),
        ('default_model_filename: "../m.pt"', "default_model_filename: must be the name of a file in the version's"),
        ("sequence_batching { }", "sequence_batching: is not supported, must be dynamic_batching or none"),
        ("ensemble_scheduling { }", "ensemble_scheduling: is not supported, must be dynamic_batching or none"),
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled: is not supported"),
        ('model_operations { op_library_filename: "x.so" }', "model_operations.op_library_filename: is not supported"),
        ('model_repository_agents { agents { name: "a" } }', "model_repository_agents.agents: is not supported"),
        ('batch_input { target_name: "n" }', "batch_input: is not supported, must be empty"),
        ('batch_output { target_name: "n" }', "batch_output: is not supported, must be empty"),
        ('cc_model_filenames { key: "8.0" value: "m" }', "cc_model_filenames: is not supported, must be empty"),
        ('input { name: "x" data_type: TYPE_FP32 dims: 1 }', "input[1].name: 'x' comes twice"),
        ("input { data_type: TYPE_FP32 dims: 1 }", "input[1].name: has 0 characters, must have 1 to 200"),
        ('input { name: "z" dims: 1 }', "input[1].data_type: is 0, must be one of TYPE_BOOL, TYPE_UINT8,"),
        ('input { name: "z" data_type: TYPE_FP32 }', "input[1].dims: has 0 entries, must have 1 to 16"),
        ('input { name: "z" data_type: TYPE_FP32 dims: 0 }', "input[1].dims: is [0], each must be -1 or 1 to 2^31"),
        ('input { name: "z" data_type: TYPE_FP32 dims: -2 }', "input[1].dims: is [-2], each must be -1 or 1 to 2^31"),
        (
            'input { name: "z" data_type: TYPE_FP32 dims: 1 format: FORMAT_NHWC }',
            "input[1].dims: has 1 entries, must have 3 with a format",
        ),
        (
            'input { name: "z" data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }',
            "input[1].is_shape_tensor: is not supported, must be false",
        ),
        (
            'input { name: "z" data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }',
            "input[1].allow_ragged_batch: is not supported, must be false",
        ),
        (
            'input { name: "z" data_type: TYPE_FP32 dims: [ 2, 3 ] reshape { shape: [ 5 ] } }',
            "input[1].reshape.shape: is [5], must have as many elements as dims [2, 3]",
        ),
        (
            'input { name: "z" data_type: TYPE_FP32 dims: [ -1, -1 ] reshape { shape: [ -1, 1, -1 ] } }',
            "input[1].reshape.shape: is not supported where dims [-1, -1] have more than one -1",
        ),
        (
            'output { name: "z" data_type: TYPE_FP32 dims: 1 label_filename: "../labels" }',
            "output[1].label_filename: must be the name of a file in the model's folder, without slashes",
        ),
        ("instance_group { count: 65 }", "instance_group[0].count: is 65, must be 0 to 64"),
        ("instance_group { count: -1 }", "instance_group[0].count: is -1, must be 0 to 64"),
        ("instance_group { kind: KIND_CPU gpus: 1 }", "instance_group[0].gpus: is [1], must be empty but for KIND_GPU"),
        ("instance_group { kind: KIND_GPU gpus: -1 }", "instance_group[0].gpus: is [-1], each must be at least 0"),
        ("instance_group { passive: true }", "instance_group[0].passive: is not supported, must be empty"),
        ('instance_group { profile: "p" }', "instance_group[0].profile: is not supported, must be empty"),
        ("version_policy { latest { } }", "version_policy.latest.num_versions: is 0, must be at least 1"),
        ("version_policy { specific { } }", "version_policy.specific.versions: is [], must name versions from 1"),
        (
            "version_policy { specific { versions: [ 0 ] } }",
            "version_policy.specific.versions: is [0], must name versions from 1",
        ),
        (
            "dynamic_batching { preferred_batch_size: [ 4, 9 ] }",
            "dynamic_batching.preferred_batch_size: has 9, each must be 1 to max_batch_size, 8",
        ),
        (
            "dynamic_batching { priority_levels: 10001 default_priority_level: 1 }",
            "dynamic_batching.priority_levels: is 10001, must be at most 10000",
        ),
        (
            "dynamic_batching { priority_levels: 3 default_priority_level: 4 }",
            "dynamic_batching.default_priority_level: is 4, must be 1 to priority_levels, 3",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 } }",
            "dynamic_batching.priority_queue_policy: has 3, each must be 1 to priority_levels, 2",
        ),
        (WARM.replace('name: "w"', "batch_size: 9"), "model_warmup[0].batch_size: is 9, must be at most 8"),
        (WARM.replace('name: "w"', "count: 10001"), "model_warmup[0].count: is 10001, must be at most 10000"),
        (WARM.replace('key: "x"', 'key: "z"'), "model_warmup[0].inputs: has 'z', must be among: x"),
        (WARM.replace('key: "x"', 'key: "z"'), "model_warmup[0].inputs: has no 'x', must have every input that is not"),
        (
            WARM.replace("TYPE_FP32", "TYPE_INT8"),
            "model_warmup[0].inputs['x'].data_type: is TYPE_INT8, must be the input's, TYPE_FP32",
        ),
        (
            WARM.replace("[ 2 ]", "[ -1 ]"),
            "model_warmup[0].inputs['x'].dims: is [-1], must be [-1] with a size for each -1",
        ),
        (WARM.replace("[ 2 ]", "[ 2, 2 ]"), "model_warmup[0].inputs['x'].dims: is [2, 2], must be [-1] with a size"),
        (
            WARM.replace("[ 2 ]", "[ 2000000000 ]"),
            "model_warmup[0].inputs['x'].dims: is [2000000000], must have at most 134217728 elements",
        ),
        (
            WARM.replace(", zero_data: true", ""),
            "model_warmup[0].inputs['x']: has no data, must have zero_data, random_data or input_data_file",
        ),
        (
            WARM.replace("zero_data: true", 'input_data_file: "../../secret"'),
            "model_warmup[0].inputs['x'].input_data_file: must be the name of a file in the model's folder warmup",
        ),
    ],
)
def test_a_field_out_of_its_bound_is_named(text: str, problem: str) -> None:
    base = "" if "max_batch_size" in text and "dynamic" not in text else "max_batch_size: 8\n"
    found = refusal(f"{base}{INPUT}\n{OUTPUT}\n{text}")
    assert found.startswith("config.pbtxt: ")
    parts = found.removeprefix("config.pbtxt: ").split("; ")
    assert any(part.startswith(problem) for part in parts), parts


def test_every_breach_is_told_at_once() -> None:
    found = refusal("max_batch_size: -1 instance_group { count: -1 }")
    for field in ("max_batch_size", "input", "output", "instance_group[0].count"):
        assert f"{field}: " in found


def test_what_a_config_leaves_out_is_filled_in() -> None:
    config = completed(parsed(f"{INPUT} {OUTPUT} instance_group {{ }} instance_group {{ count: 3 }}"), "model")
    assert config.name == "model"
    assert config.version_policy.latest.num_versions == 1
    assert [(group.name, group.count) for group in config.instance_group] == [("model_0", 1), ("model_1", 3)]
    assert completed(parsed(f'{INPUT} {OUTPUT} platform: "pytorch_libtorch"'), "m").backend == "pytorch"


def test_a_config_that_is_read_is_not_changed() -> None:
    config = parsed(f"{INPUT} {OUTPUT}")
    before = config.SerializeToString()
    completed(config, "model")
    assert config.SerializeToString() == before


@pytest.mark.parametrize(
    ("name", "is_good"),
    [("model", True), ("a.b-c_d+e", True), ("7", True), ("a" * 200, True), ("a" * 201, False), ("", False)]
    + [(name, False) for name in (".", "..", ".git", "-f", "+f", "a/b", "a\\b", "a b", "ü", "a\n", "a\0")],
)
def test_names_of_models(name: str, is_good: bool) -> None:
    assert is_model_name(name) is is_good


@pytest.mark.parametrize(
    ("name", "is_good"),
    [("m.pt", True), ("..m", True), ("a b", True), ("..", False), (".", False), ("", False)]
    + [(name, False) for name in ("a/b", "/a", "a\0", "a" * 256)],
)
def test_names_of_files(name: str, is_good: bool) -> None:
    assert is_file_name(name) is is_good


@pytest.mark.parametrize(
    ("name", "version"), [("1", 1), ("10", 10), ("0", None), ("01", None), ("-1", None), ("1a", None), ("9" * 19, None)]
)
def test_names_of_versions(name: str, version: int | None) -> None:
    assert version_of(name) == version


@pytest.mark.parametrize("name", ["nowhere", "..", "../repository/model", "model/", "/", ""])
def test_no_name_leads_out_of_the_repository(tmp_path: Path, name: str) -> None:
    repository = tmp_path / "repository"
    write_model(repository, "model")
    write_model(tmp_path, "outside")
    with pytest.raises(UnknownModel) as caught:
        Repository(repository).read(name)
    assert caught.value.known == ["model"]


def test_a_repository_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        Repository(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [2, 10]),
        ("version_policy { latest { num_versions: 9 } }", [1, 2, 10]),
        ("version_policy { all { } }", [1, 2, 10]),
        ("version_policy { specific { versions: [ 2, 1, 2 ] } }", [1, 2]),
    ],
)
def test_the_policy_chooses_versions(tmp_path: Path, policy: str, versions: list[int]) -> None:
    for version in (1, 2, 10):
        write_model(tmp_path, "model", config=ONE_INPUT + policy, version=version)
    (tmp_path / "model" / "03").mkdir()
    (tmp_path / "model" / "11").write_text("a file")
    assert sorted(Repository(tmp_path).read("model").files) == versions


def broken(repository: Path) -> str:
    with pytest.raises(BrokenModel) as caught:
        Repository(repository).read("model")
    return str(caught.value)


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert broken(tmp_path) == "config.pbtxt: cannot be read: No such file or directory"
    (folder / "config.pbtxt").write_text(
        f'{INPUT} {OUTPUT} backend: "python" version_policy {{ specific {{ versions: 4 }} }}'
    )
    assert broken(tmp_path) == "model: has no versions, must have a folder that is named by a number from 1"
    (folder / "3").mkdir()
    assert broken(tmp_path) == "config.pbtxt: version_policy.specific.versions: has 4, which has no folder"
    (folder / "4").mkdir()
    assert broken(tmp_path) == "model/4: has no file model.py"
    (folder / "config.pbtxt").write_text(f"{INPUT} {OUTPUT}")
    assert broken(tmp_path) == "model/4: has no file model.py or model.pt or model.pt2"
    (folder / "config.pbtxt").write_text(f'{INPUT} {OUTPUT} default_model_filename: "net.pt"')
    assert broken(tmp_path) == "model/4: has no file net.pt"
    (folder / "config.pbtxt").write_text("#" * 2**20 + "\n")
    assert broken(tmp_path) == "config.pbtxt: has more than 1048576 bytes, must have at most that many"
    (folder / "config.pbtxt").write_bytes(b"\xff")
    assert broken(tmp_path).startswith("config.pbtxt: is no ModelConfig as text: ")


@pytest.mark.parametrize(
    ("file", "backend"), [("model.py", "python"), ("model.pt", "pytorch"), ("model.pt2", "pytorch")]
)
def test_the_file_tells_the_backend(tmp_path: Path, file: str, backend: str) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "config.pbtxt").write_text(f"{INPUT} {OUTPUT}")
    (tmp_path / "model" / "1" / file).touch()
    source = Repository(tmp_path).read("model")
    config = source.spec.config
    assert (source.backend, config.backend, source.files[1].name) == (backend, backend, file)
    assert config.default_model_filename == file
    assert config.platform == ("pytorch_libtorch" if file == "model.pt" else "")


def warm(folder: Path, data_type: str, data: str, batch_size: int = 0, max_batch_size: int = 8) -> Source:
    tensor = f'name: "x", data_type: {data_type}, dims: [ -1, 3 ]'
    given = f'inputs {{ key: "x" value {{ data_type: {data_type}, dims: [ 2, 3 ], {data} }} }}'
    config = f"input [ {{ {tensor} }} ] {OUTPUT} model_warmup [ {{ batch_size: {batch_size}, {given} }} ]"
    write_model(folder, "model", config=config, max_batch_size=max_batch_size)
    return Repository(folder).read("model")


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true"])
@pytest.mark.parametrize("name", [name for name in pb.DataType.keys() if name != "TYPE_INVALID"])  # noqa: SIM118
def test_warm_up_data_of_every_datatype(tmp_path: Path, name: str, data: str) -> None:
    source = warm(tmp_path, name, data, batch_size=4)
    array = source.warm_ups[0].inputs["x"]
    assert array.shape == (4, 2, 3)
    assert array.dtype == source.spec.inputs[0].datatype.numpy
    if "zero" in data:
        assert not array.any()
    elif name == "TYPE_STRING":
        assert {type(value) for value in array.flat} == {bytes}
    assert source.warm_ups[0].count == 1


def test_warm_up_without_a_batch(tmp_path: Path) -> None:
    assert warm(tmp_path, "TYPE_FP32", "zero_data: true", max_batch_size=0).warm_ups[0].inputs["x"].shape == (2, 3)


def test_warm_up_data_from_a_file(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    folder = tmp_path / "model" / "warmup"
    folder.mkdir()
    file = 'input_data_file: "data"'
    with pytest.raises(BrokenModel, match="warmup/data: cannot be read: No such file or directory"):
        warm(tmp_path, "TYPE_INT16", file)
    (folder / "data").write_bytes(bytes(11))
    with pytest.raises(BrokenModel, match=r"warmup/data: has 11 bytes, must have 12 as INT16 \[2, 3\]"):
        warm(tmp_path, "TYPE_INT16", file)
    (folder / "data").write_bytes(np.arange(6, dtype=np.int16).tobytes())
    array = warm(tmp_path, "TYPE_INT16", file, batch_size=2).warm_ups[0].inputs["x"]
    assert array.tolist() == [[[0, 1, 2], [3, 4, 5]]] * 2
    with pytest.raises(BrokenModel, match="warmup/data: "):
        warm(tmp_path, "TYPE_STRING", file)
    (folder / "data").write_bytes(b"\1\0\0\0a" * 6)
    assert warm(tmp_path, "TYPE_STRING", file).warm_ups[0].inputs["x"].tolist() == [[[b"a"] * 3] * 2]


CPU, GPU = Kind.KIND_CPU, Kind.KIND_GPU


@pytest.mark.parametrize(
    ("groups", "backend", "places"),
    [
        ("", "python", [Placement(CPU)]),
        ("instance_group { count: 2 kind: KIND_CPU }", "python", [Placement(CPU)] * 2),
        ("instance_group { kind: KIND_MODEL }", "python", [Placement(Kind.KIND_MODEL)]),
        (
            "instance_group { count: 2 gpus: [ 0, 3 ] } instance_group { kind: KIND_CPU }",
            "python",
            [Placement(GPU, 0), Placement(GPU, 3), Placement(GPU, 0), Placement(GPU, 3), Placement(CPU)],
        ),
        ("instance_group { kind: KIND_GPU gpus: 5 }", "pytorch", [Placement(GPU, 5)]),
        ("instance_group { kind: KIND_CPU }", "pytorch", [Placement(CPU)]),
    ],
)
def test_where_instances_run(groups: str, backend: str, places: list[Placement]) -> None:
    assert placements(completed(parsed(f"{INPUT} {OUTPUT} {groups}"), "model"), backend) == places


@pytest.mark.parametrize(
    ("backend", "num_gpus", "found"),
    [
        ("python", 2, "instance_group[0].gpus: is empty, must be given for KIND_GPU of a Python class"),
        ("pytorch", 0, "instance_group[0].kind: is KIND_GPU, and there is no GPU that torch can use"),
        ("pytorch", 2, [Placement(GPU, 0), Placement(GPU, 1)]),
    ],
)
def test_a_group_that_leaves_gpus_open(
    monkeypatch: pytest.MonkeyPatch, backend: str, num_gpus: int, found: str | list[Placement]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    config = completed(parsed(f"{INPUT} {OUTPUT} instance_group {{ kind: KIND_GPU }}"), "model")
    if isinstance(found, list):
        assert placements(config, backend) == found
        return
    with pytest.raises(BrokenModel) as caught:
        placements(config, backend)
    assert str(caught.value) == f"config.pbtxt: {found}"


def test_the_examples_are_as_they_must_be() -> None:
    repository = Repository(EXAMPLES / "plain-models")
    assert [repository.read(name).spec.name for name in repository.names()] == repository.names()
    assert len(repository.names()) == 3
