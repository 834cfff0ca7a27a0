"""The pipeline as models: one ensemble, and its steps."""

from __future__ import annotations

from collections.abc import Iterator

from steploom_gateway.catalogue import Catalogue, Model
from steploom_gateway.oip.names import EDITED, IMAGE, INSTRUCTION, STAGES, VERSION, step_name
from steploom_gateway.oip.orders import EXPECTED, FORMATS, SAMPLERS
from steploom_gateway.oip.tensors import BYTES
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import model_config_pb2 as config_pb

_BACKEND = "steploom"
_SLOT = "slot"  # between steps: a job's place on the device, which holds latents, conditioning and step
_STATES = ("encoded", "denoised")  # of the slot, after the steps before the last


def metadata(model: Model, stage: str) -> pb.ModelMetadataResponse:
    """The tensors of the pipeline, or of one of its steps."""
    inputs, outputs = _tensors(model, stage)
    return pb.ModelMetadataResponse(
        name=step_name(model, stage) if stage else model.name,
        versions=[VERSION],
        platform=_platform(stage),
        inputs=inputs,
        outputs=outputs,
    )


def config(catalogue: Catalogue, stage: str) -> config_pb.ModelConfig:
    """The configuration of the pipeline, or of one of its steps."""
    model = catalogue.model
    inputs, outputs = _tensors(model, stage)
    result = config_pb.ModelConfig(
        name=step_name(model, stage) if stage else model.name,
        platform=_platform(stage),
        backend=_BACKEND if stage else "",
        version_policy=config_pb.ModelVersionPolicy(latest=config_pb.ModelVersionPolicy.Latest(num_versions=1)),
        max_batch_size=0,
        input=[config_pb.ModelInput(name=item.name, data_type=_type(item), dims=item.shape) for item in inputs],
        output=[config_pb.ModelOutput(name=item.name, data_type=_type(item), dims=item.shape) for item in outputs],
        model_transaction_policy=config_pb.ModelTransactionPolicy(decoupled=False),
    )
    if not stage:
        result.ensemble_scheduling.CopyFrom(_ensemble(model))
        for name, value in _facts(catalogue).items():
            result.parameters[name].string_value = value
    return result


Metadata = pb.ModelMetadataResponse.TensorMetadata


def _tensors(model: Model, stage: str) -> tuple[list[Metadata], list[Metadata]]:
    given = [Metadata(name=name, datatype=BYTES, shape=[1]) for name in (IMAGE, INSTRUCTION)]
    edited = [Metadata(name=EDITED, datatype=BYTES, shape=[1])]
    slot = [Metadata(name=_SLOT, datatype="FP32", shape=model.latent_shape or (-1, -1, -1))]
    match stage:
        case "encode":
            return given, slot
        case "denoise":
            return slot, slot
        case "decode":
            return slot, edited
    return given, edited


def _ensemble(model: Model) -> config_pb.ModelEnsembling:
    return config_pb.ModelEnsembling(step=list(_steps(model)))


def _steps(model: Model) -> Iterator[config_pb.ModelEnsembling.Step]:
    given, edited = {name: name for name in EXPECTED}, {EDITED: EDITED}
    encoded, denoised = ({_SLOT: state} for state in _STATES)
    maps = ((given, encoded), (encoded, denoised), (denoised, edited))
    for stage, (inputs, outputs) in zip(STAGES, maps, strict=True):
        name = step_name(model, stage)
        yield config_pb.ModelEnsembling.Step(
            model_name=name, model_version=int(VERSION), input_map=inputs, output_map=outputs
        )


def _facts(catalogue: Catalogue) -> dict[str, str]:
    """What a caller may ask for, in words."""
    model = catalogue.model
    return {
        "height": str(model.height),
        "width": str(model.width),
        "max_steps": str(model.max_steps),
        "adapters": ",".join(model.adapters),
        "tiers": ",".join(catalogue.priorities),  # priority 1 is the first
        "samplers": ",".join(SAMPLERS),
        "output_formats": ",".join(FORMATS),
    }


def _platform(stage: str) -> str:
    return _BACKEND if stage else "ensemble"


def _type(tensor: Metadata) -> config_pb.DataType:
    return config_pb.TYPE_STRING if tensor.datatype == BYTES else config_pb.TYPE_FP32
