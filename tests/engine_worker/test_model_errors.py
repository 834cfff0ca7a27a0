"""Each way in which a model directory can be wrong, by itself, and the layouts that are right."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.model import load_model
from steploom_engine_worker.model_files import embedded_model
from steploom_engine_worker.schedule import Sampler

Spoil = Callable[[Path], None]


@pytest.fixture
def directory(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def edit(file: str, **changes: Any) -> Spoil:
    """Changes keys of a JSON file; None removes one."""

    def spoil(root: Path) -> None:
        values = {**json.loads((root / file).read_text()), **changes}
        (root / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return spoil


def remove(file: str) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def write(file: str, content: bytes) -> Spoil:
    return lambda root: void((root / file).write_bytes(content))


def void(_: object) -> None:
    """For expressions whose value is not wanted."""


def cut(file: str) -> Spoil:
    """As after a download that broke off."""
    return lambda root: void((root / file).write_bytes((root / file).read_bytes()[:-100]))


def change_tensors(file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(root: Path) -> None:
        tensors = load_file(root / file)
        change(tensors)
        save_file(tensors, root / file, metadata={"format": "pt"})

    return spoil


def only_pickle(root: Path) -> None:
    (root / "unet/diffusion_pytorch_model.safetensors").rename(root / "unet/diffusion_pytorch_model.bin")


def shard(root: Path) -> None:
    """Splits the UNet's weights into two files with an index, as large checkpoints have it."""
    folder = root / "unet"
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def shard_and(then: Spoil) -> Spoil:
    def spoil(root: Path) -> None:
        shard(root)
        then(root)

    return spoil


UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"

FAULTS: dict[str, tuple[Spoil, str]] = {
    "no directory": (remove("."), "is not a directory"),
    "no index": (remove("model_index.json"), r"model_index\.json: is missing"),
    "broken index": (write("model_index.json", b"{"), r"model_index\.json: cannot be read as JSON"),
    "index of another kind": (write("model_index.json", b"[]"), r"model_index\.json: holds a list, expected an object"),
    "another pipeline": (
        edit("model_index.json", _class_name="StableDiffusionPipeline"),
        "_class_name is 'StableDiffusionPipeline', expected 'StableDiffusionInstructPix2PixPipeline'",
    ),
    "part not named": (edit("model_index.json", unet=None), "unet is None, expected"),
    "another class": (edit("model_index.json", vae=["diffusers", "VQModel"]), "vae is a VQModel, expected Autoencoder"),
    "no unet": (remove("unet"), r"unet: is missing: the directory is not complete"),
    "no tokenizer": (remove("tokenizer"), r"tokenizer: is missing"),
    "no scheduler": (remove("scheduler/scheduler_config.json"), r"scheduler_config\.json: is missing"),
    "no unet config": (remove("unet/config.json"), r"unet/config\.json: is missing"),
    "no weights": (remove(UNET), r"diffusion_pytorch_model\.safetensors: is missing"),
    "only pickles": (only_pickle, r"only as diffusion_pytorch_model\.bin: convert it"),
    "cut weights": (cut(UNET), "is no complete safetensors file"),
    "weights of zeros": (write(UNET, bytes(4096)), "is no complete safetensors file"),
    "empty weights": (write(UNET, b""), "is no complete safetensors file"),
    "text to picture": (edit("unet/config.json", in_channels=4), "in_channels is 4, expected 8: the noisy latents"),
    "other latents": (edit("vae/config.json", latent_channels=16), "in_channels is 8, expected 32"),
    "other text": (edit("text_encoder/config.json", hidden_size=48), "cross_attention_dim is 32, expected 48"),
    "foreign condition": (
        edit("unet/config.json", addition_embed_type="text_time"),
        "addition_embed_type is 'text_time'",
    ),
    "no size": (edit("unet/config.json", sample_size=None), "sample_size is None"),
    "tensors lack": (
        change_tensors(UNET, lambda tensors: void(tensors.pop("conv_out.weight"))),
        r"lack tensors that config\.json asks for: conv_out\.weight",
    ),
    "tensors too many": (
        change_tensors(UNET, lambda tensors: tensors.update({"conv_more.weight": torch.zeros(1)})),
        r"no place for: conv_more\.weight",
    ),
    "tensors of another shape": (
        change_tensors(UNET, lambda tensors: tensors.update({"conv_out.weight": torch.zeros(4, 9, 3, 3)})),
        r"unet: .*conv_out\.weight",
    ),
    "tensors not finite": (
        change_tensors(UNET, lambda tensors: void(tensors["conv_out.weight"].fill_(torch.nan))),
        r"tensor conv_out\.weight holds values that are not finite",
    ),
    "text encoder lacks tensors": (
        change_tensors("text_encoder/model.safetensors", lambda tensors: void(tensors.popitem())),
        "text_encoder: the weights",
    ),
    "no vocabulary": (remove("tokenizer/vocab.json"), "tokenizer: "),
    "flow prediction": (
        edit("scheduler/scheduler_config.json", prediction_type="flow_prediction"),
        "prediction_type is 'flow_prediction'",
    ),
    "shard lacks": (
        shard_and(remove("unet/diffusion_pytorch_model-00002-of-00002.safetensors")),
        "00002-of-00002.safetensors: is missing",
    ),
    "shard cut": (shard_and(cut("unet/diffusion_pytorch_model-00001-of-00002.safetensors")), "is no complete"),
    "shard elsewhere": (
        shard_and(edit(INDEX, weight_map={"a": "../vae/x.safetensors"})),
        "expected a safetensors file",
    ),
    "shard index empty": (shard_and(edit(INDEX, weight_map={})), "weight_map is missing or empty"),
    "manifest with unknown key": (
        write("steploom.json", b'{"defaults": {"stepz": 3}}'),
        "defaults.stepz: unknown key, did you mean 'steps'",
    ),
    "manifest out of bounds": (
        write("steploom.json", b'{"defaults": {"guidance_scale": 99}}'),
        r"defaults\.guidance_scale: is 99.0, must be",
    ),
    "manifest of another format": (write("steploom.json", b'{"format": 2}'), "format: is 2, must be at least 1"),
    "manifest with odd size": (
        write("steploom.json", b'{"resolution": 100}'),
        "resolution is 100, expected a multiple of 64",
    ),
    "manifest with unknown sampler": (
        write("steploom.json", b'{"defaults": {"sampler": "lms"}}'),
        "sampler: is 'lms', must be one of",
    ),
    "manifest of other weights": (
        write("steploom.json", b'{"weights_sha256": "00"}'),
        "weights_sha256 is not that of the weights",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_directory_is_a_clear_error(directory: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(directory)
    with pytest.raises(ModelError, match=message):
        load_model(directory)


def same_weights(first: Any, second: Any) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_loads_shards(directory: Path, tiny_model_dir: Path) -> None:
    shard(directory)
    assert same_weights(load_model(directory).unet, load_model(tiny_model_dir).unet)


def test_loads_half_precision_files_where_there_are_no_others(directory: Path, tiny_model_dir: Path) -> None:
    whole = directory / UNET
    half = {name: tensor.half() for name, tensor in load_file(whole).items()}
    save_file(half, directory / "unet/diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    whole.unlink()
    unet = load_model(directory).unet
    assert unet.dtype == torch.float32
    expected = load_model(tiny_model_dir).unet.conv_in.weight
    torch.testing.assert_close(unet.conv_in.weight, expected, rtol=1e-3, atol=1e-3)


def test_defaults_of_a_directory(directory: Path) -> None:
    published = load_model(directory)
    assert (published.default_sampler, published.side, published.defaults.steps) == (Sampler.EULER, 64, 35)
    (directory / "steploom.json").write_text(
        '{"name": "mine", "resolution": 128, "defaults": {"sampler": "dpmpp_2m", "steps": 20}}'
    )
    own = load_model(directory)
    assert (own.name, own.default_sampler, own.side, own.defaults.steps) == ("mine", Sampler.DPMPP_2M, 128, 20)


def test_equal_digests_mean_equal_pictures(directory: Path, tiny_model_dir: Path) -> None:
    digest = load_model(tiny_model_dir).digest
    (directory / "README.md").write_text("not part of it")
    assert load_model(directory).digest == digest
    edit("scheduler/scheduler_config.json", steps_offset=0)(directory)
    assert load_model(directory).digest != digest


def test_never_asks_the_network(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the loader has opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_model(directory)
    remove("tokenizer/vocab.json")(directory)
    with pytest.raises(ModelError):
        load_model(directory)


def test_a_missing_embedded_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("steploom_engine_worker.model_files.find_spec", lambda name: None)
    monkeypatch.setattr("steploom_engine_worker.model_files.__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(ModelError, match=r"name a model directory"):
        embedded_model()
