"""The names by which this protocol knows the pipeline: its model, its steps, its tensors."""

from __future__ import annotations

from collections.abc import Sequence

from steploom_common.errors import NotFound, Unsupported
from steploom_gateway.catalogue import Catalogue, Model

SERVER = "steploom"
VERSION = "1"  # of every model: a directory is served as it was at the worker's start
STAGES = ("encode", "denoise", "decode")

IMAGE = "image"  # the picture to edit
INSTRUCTION = "instruction"
# Not `image`: tensors of an ensemble have one name each, from its inputs to its outputs.
EDITED = "edited_image"
PREVIEW = "preview"  # of progress, where it is asked for


def step_name(model: Model, stage: str) -> str:
    """The name of a step of the pipeline, as a model of its own."""
    return f"{model.name}.{stage}"


def adapter_name(model: Model, adapter: str) -> str:
    """The name of an adapter of the pipeline, as a model of its own."""
    return f"{model.name}.adapters.{adapter}"


def names(model: Model) -> Sequence[str]:
    """The pipeline and its steps."""
    return (model.name, *(step_name(model, stage) for stage in STAGES))


def check_model(catalogue: Catalogue, name: str, version: str) -> str:
    """The stage that a name stands for; empty for the pipeline itself.

    Raises:
        NotFound: no such model, or no such version of it.
        Unsupported: it is an adapter.
    """
    model = catalogue.model
    for adapter in model.adapters:
        if name == adapter_name(model, adapter):
            raise Unsupported(
                f"{name} is an adapter: it runs within {model.name}; ask that, with the parameter adapter={adapter}"
            )
    if name not in names(model):
        raise NotFound("model", name[:100], names(model))
    if version not in ("", VERSION):
        raise NotFound(f"version of {name}", version[:100], [VERSION])
    return name.removeprefix(f"{model.name}.") if name != model.name else ""


def check_whole(catalogue: Catalogue, name: str, version: str) -> None:
    """Whether a name is the pipeline's: a step runs within it alone.

    Raises:
        NotFound: no such model, or no such version of it.
        Unsupported: it is a step, or an adapter.
    """
    if check_model(catalogue, name, version):
        whole = catalogue.model.name
        raise Unsupported(f"{name} is a step of {whole}: what lies between steps never leaves the device; ask {whole}")
