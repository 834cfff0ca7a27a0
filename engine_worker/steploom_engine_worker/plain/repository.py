"""A model repository in Triton's layout: REPOSITORY/NAME/config.pbtxt and REPOSITORY/NAME/VERSION/model.pt.

The folder is code: model.py is run as it stands, and a program of torch may do what torch can. Who may write there may
do what the host may.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steploom_engine_worker.plain.errors import BrokenModel, UnknownModel
from steploom_engine_worker.plain.model_config import (
    CONFIG_FILE,
    FILES,
    LIBTORCH,
    PYTHON,
    TORCH,
    completed,
    read_config,
)
from steploom_engine_worker.plain.names import MODEL_NAMES, is_model_name, version_of
from steploom_engine_worker.plain.spec import ModelSpec, spec_of
from steploom_engine_worker.plain.warm_up_config import WarmUp, read_warm_ups
from steploom_protos.inference import model_config_pb2 as pb


@dataclass(frozen=True)
class Source:
    """What a model is loaded from."""

    spec: ModelSpec
    backend: str
    files: dict[int, Path]  # the model's file of each version that is served, rising
    warm_ups: tuple[WarmUp, ...]


class Repository:
    """The folder. It is looked at anew each time. Reads block.

    Args:
        root: a folder with a folder for each model.

    Raises:
        NotADirectoryError: it is none.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise NotADirectoryError(20, "is not a directory", str(root))
        self.root = root.resolve()

    def __repr__(self) -> str:
        return f"Repository({self.root})"

    def names(self) -> list[str]:
        """Folders that may hold a model, sorted; others are passed over."""
        return sorted(path.name for path in self.root.iterdir() if is_model_name(path.name) and path.is_dir())

    def read(self, name: str, config: pb.ModelConfig | None = None) -> Source:
        """A model, ready to be loaded.

        Args:
            name: of its folder.
            config: in place of the folder's own.

        Raises:
            UnknownModel: there is no such folder.
            BrokenModel: its config is wrong, or a file is missing.
        """
        folder = self._folder(name)
        full = completed(config or read_config(folder), name)
        versions = _chosen(full, _versions(folder))
        files = {version: _file(folder / str(version), full) for version in versions}
        _note_files(full, files)
        spec = spec_of(full)
        return Source(spec, full.backend, files, read_warm_ups(spec, folder))

    def _folder(self, name: str) -> Path:
        # what is no name of a model leads nowhere, and so does not exist
        if not is_model_name(name) or not (self.root / name).is_dir():
            raise UnknownModel(name, self.names())
        return self.root / name


def strangers(repository: Repository) -> list[str]:
    """Folders with a config whose names no model can have, each as a sentence for the log."""
    return [
        f"{path.name!r} is no model: the name of its folder must be {MODEL_NAMES}"
        for path in sorted(repository.root.iterdir())
        if not is_model_name(path.name) and (path / CONFIG_FILE).is_file()
    ]


def _versions(folder: Path) -> list[int]:
    found = (version_of(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(version for version in found if version is not None)


def _chosen(config: pb.ModelConfig, versions: list[int]) -> list[int]:
    """Those that the policy serves."""
    if not versions:
        raise BrokenModel(config.name, "has no versions, must have a folder that is named by a number from 1")
    policy = config.version_policy
    if policy.HasField("specific"):
        missing = sorted(set(policy.specific.versions) - set(versions))
        if missing:
            raise BrokenModel(CONFIG_FILE, f"version_policy.specific.versions: has {missing[0]}, which has no folder")
        return sorted(set(policy.specific.versions))
    return versions if policy.HasField("all") else versions[-policy.latest.num_versions :]


def _file(folder: Path, config: pb.ModelConfig) -> Path:
    """The model's file in the folder of a version."""
    names = [config.default_model_filename] if config.default_model_filename else list(_usual(config.backend))
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BrokenModel(f"{config.name}/{folder.name}", f"has no file {' or '.join(names)}")


def _usual(backend: str) -> Iterator[str]:
    for known, names in FILES.items():
        if backend in ("", known):
            yield from names


def _note_files(config: pb.ModelConfig, files: dict[int, Path]) -> None:
    """What the files tell of a model, and a client may want to know."""
    config.backend = config.backend or _backend_of(files)
    names = {file.name for file in files.values()}
    if len(names) == 1:
        config.default_model_filename = next(iter(names))
    if config.backend == TORCH and names == {FILES[TORCH][0]}:
        config.platform = LIBTORCH


def _backend_of(files: dict[int, Path]) -> str:
    """Of a config that names none."""
    found = {PYTHON if file.suffix == ".py" else TORCH for file in files.values()}
    if len(found) > 1:
        raise BrokenModel(CONFIG_FILE, "backend: is empty, must be given where versions are of several")
    return found.pop()
