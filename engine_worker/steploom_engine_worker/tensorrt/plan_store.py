"""Engines that were built, on disk: each file named by its SHA-256, and a manifest that says what they are for.

A folder holds `manifest.json`, `SHA256.plan` files, `kernels/` (see `steploom_kernels.launch_recipe`) and what a build
may use again (timing caches). A file appears whole or not at all, and the manifest after the files that it names. Needs
neither torch nor TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest; changes with the meaning of a field
SUFFIX = ".plan"
FOLDER = "engines"  # of a model directory

PRECISIONS = ("fp16", "bf16", "fp8")
REBUILD = "build it again with `steploom build-engine`"


class PlanError(ValueError):
    """An engine cannot be used; the message says why, and what to run."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an engine."""

    name: str
    dtype: str  # float16, bfloat16, float32 or int32
    shape: tuple[int, ...]  # the first is -1: the bucket
    is_input: bool


@dataclass(frozen=True)
class Plan:
    """A built engine."""

    network: str  # unet, text_encoder, vae_encoder or vae_decoder
    buckets: tuple[int, ...]  # rows; bucket i is optimization profile i, and where there is one the engine is static
    file: str  # beside the manifest
    num_bytes: int
    tensors: tuple[TensorSpec, ...]
    flavour: str  # tensorrt or tensorrt_rtx
    version: str  # of TensorRT
    capability: tuple[int, int]  # of the GPU
    key: str  # of all that it was built from: equal keys need no second build
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the builder
    num_nodes: tuple[int, int] = (0, 0)  # of the graph, before and after folding
    num_layers: int = 0  # that the builder was given
    build_s: float = 0.0

    @property
    def sha256(self) -> str:
        """Of the file, in hex."""
        return self.file.removesuffix(SUFFIX)

    def __str__(self) -> str:
        rows = ", ".join(str(bucket) for bucket in self.buckets)
        return f"{self.network} for {rows} row{'' if rows == '1' else 's'}"


@dataclass(frozen=True)
class PlanStore:
    """What a folder holds."""

    folder: Path
    model_digest: str = ""  # of the model directory; see `model.Model`
    precision: str = ""  # one of PRECISIONS
    adapters: tuple[str, ...] = ()  # whose gates are the columns of an input
    plans: tuple[Plan, ...] = ()

    @property
    def kernels(self) -> Path:
        """The folder of the compiled Triton kernels."""
        return self.folder / "kernels"

    def of(self, network: str) -> tuple[Plan, ...]:
        """The plans of a network, by their smallest bucket."""
        return tuple(sorted((plan for plan in self.plans if plan.network == network), key=lambda plan: plan.buckets))

    def read(self, plan: Plan) -> bytes:
        """The engine itself.

        Raises:
            PlanError: the file is missing, truncated or another one.
        """
        file = self.folder / plan.file
        try:
            content = file.read_bytes()
        except OSError as error:
            raise PlanError(f"{file}: the engine of {plan} cannot be read: {error.strerror}; {REBUILD}") from None
        if len(content) != plan.num_bytes:
            problem = f"has {len(content)} bytes, must have {plan.num_bytes}: it is truncated or another file"
            raise PlanError(f"{file}: the engine of {plan} {problem}; {REBUILD}")
        if hashlib.sha256(content).hexdigest() != plan.sha256:
            raise PlanError(f"{file}: the engine of {plan} is damaged: its SHA-256 is not its name; {REBUILD}")
        return content

    def check(self, model_digest: str, flavour: str, version: str, capability: tuple[int, int]) -> None:
        """Whether the plans are for this model, TensorRT and GPU.

        Raises:
            PlanError: one is not; names it and the reason.
        """
        if not self.plans:
            raise PlanError(f"{self.folder}: holds no engine; {REBUILD}")
        if self.model_digest != model_digest:
            problem = f"were built from another model: digest {self.model_digest[:12]}, this one is {model_digest[:12]}"
            raise PlanError(f"{self.folder}: the engines {problem}; {REBUILD}")
        for plan in self.plans:
            problem = foreign(plan, flavour, version, capability)
            if problem:
                raise PlanError(f"{self.folder / plan.file}: the engine of {plan} {problem}; {REBUILD}")

    def with_plan(self, plan: Plan) -> PlanStore:
        """This, with a plan in place of those of the same network that have a bucket of its."""
        kept = [old for old in self.plans if old.network != plan.network or not set(old.buckets) & set(plan.buckets)]
        return replace(self, plans=(*kept, plan))

    def write(self) -> None:
        """Puts the manifest in place, after which files that it does not name are removed."""
        manifest = {"format": FORMAT, **asdict(self)}
        del manifest["folder"]
        write_whole(self.folder / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
        named = {plan.file for plan in self.plans}
        for file in self.folder.glob(f"*{SUFFIX}"):
            if file.name not in named:
                file.unlink(missing_ok=True)


def foreign(plan: Plan, flavour: str, version: str, capability: tuple[int, int]) -> str:
    """Why a TensorRT on a GPU cannot use a plan, in words; empty where it can."""
    if (plan.flavour, plan.version) != (flavour, version):
        return f"was built by {plan.flavour} {plan.version}, here is {flavour} {version}"
    if plan.capability != capability:
        built, here = (f"{major}.{minor}" for major, minor in (plan.capability, capability))
        return f"was built for compute capability {built}, this GPU has {here}"
    return ""


def open_store(folder: Path) -> PlanStore:
    """What a folder holds, by its manifest; the files are not looked at.

    Raises:
        PlanError: there is no manifest, or none of this program.
    """
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        raise PlanError(f"{folder}: holds no engines; {REBUILD}") from None
    except (OSError, ValueError) as error:
        raise PlanError(f"{file}: cannot be read as JSON: {error}; {REBUILD}") from None
    try:
        if manifest["format"] != FORMAT:
            raise PlanError(f"{file}: is of format {manifest['format']}, this program reads {FORMAT}; {REBUILD}")
        return PlanStore(
            folder=folder,
            model_digest=str(manifest["model_digest"]),
            precision=str(manifest["precision"]),
            adapters=tuple(manifest["adapters"]),
            plans=tuple(_plan(item) for item in manifest["plans"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{file}: is no manifest of engines: {error!r}; {REBUILD}") from None


def _plan(item: Mapping[str, Any]) -> Plan:
    tensors = tuple(TensorSpec(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in item["tensors"])
    major, minor = item["capability"]
    before, after = item["num_nodes"]
    name = str(item["file"])
    if Path(name).name != name:
        raise KeyError(f"file {name!r}")
    return Plan(
        **{
            **item,
            "file": name,
            "tensors": tensors,
            "buckets": tuple(item["buckets"]),
            "capability": (major, minor),
            "num_nodes": (before, after),
        }
    )


def add_file(folder: Path, content: bytes) -> str:
    """Puts an engine into a folder, and gives the name of its file."""
    name = hashlib.sha256(content).hexdigest() + SUFFIX
    write_whole(folder / name, content)
    return name


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all, whatever happens meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with part.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def key_of(**parts: Any) -> str:
    """A name for all that a plan was built from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
