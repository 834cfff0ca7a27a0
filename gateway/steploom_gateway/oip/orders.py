"""A ModelInferRequest becomes the EditRequest that says the same, so that there is one set of bounds.

What only this protocol has is checked here: tensors, parameters by name and kind, and where outputs go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from steploom_common.errors import InvalidRequest, Violation
from steploom_gateway.catalogue import Catalogue
from steploom_gateway.oip.names import EDITED, IMAGE, INSTRUCTION, PREVIEW
from steploom_gateway.oip.parameters import MAX_ENTRIES, MAX_NAME, UINT32, UINT64, Parameters
from steploom_gateway.oip.regions import Regions, Stretch
from steploom_gateway.oip.tensors import BYTES, UINT8, Expected, Inputs, Tensor, stretch_of
from steploom_gateway.service import Asked
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.v1 import image_pb2

EXPECTED = {
    IMAGE: Expected({BYTES: (1,), UINT8: (-1, -1, 3)}),
    INSTRUCTION: Expected({BYTES: (1,)}),
}

# Where this protocol has what a violation of an EditRequest names; all other fields are parameters.
_PLACES = {"image": f"inputs.{IMAGE}", "instruction": f"inputs.{INSTRUCTION}", "request_id": "id"}


@dataclass(frozen=True)
class Wanted:
    """What is to be answered, and where that goes."""

    outputs: Mapping[str, Stretch | None]  # by name, in order: into shared memory, or into the message
    has_progress: bool  # of a stream


def read_order(
    request: pb.ModelInferRequest, catalogue: Catalogue, regions: Regions, max_bytes: int
) -> tuple[Asked, Wanted]:
    """What is asked for. Takes the tensors out of the request. Computes and blocks.

    Args:
        request: as it came in.
        catalogue: what is served.
        regions: shared memory that is registered.
        max_bytes: that a tensor may take of shared memory.

    Raises:
        InvalidRequest: names what only this protocol has and is not as it must be; not more than an answer can hold.
        NotFound: there is no such shared memory.
    """
    problems = list(_too_long(request))
    if problems:
        raise InvalidRequest(*problems)
    tensors = Inputs(request, EXPECTED, regions, max_bytes, problems).read()
    edit = image_pb2.EditRequest(model=request.model_name, request_id=request.id)
    parameters = Parameters("parameters", request.parameters, problems)
    timeout_us = _read_parameters(parameters, edit, catalogue)
    wanted = Wanted(_outputs(request, regions, problems), parameters.switch("progress", default=True))
    parameters.switch("triton_enable_empty_final_response", default=False)  # the last answer is never empty
    parameters.finish()
    _read_tensors(tensors, edit, problems)
    if problems:
        raise InvalidRequest(*problems[:MAX_ENTRIES])
    del request.inputs[:], request.raw_input_contents[:]  # the edit has them now; one copy is enough
    return Asked(edit, timeout_us / 1e6 if timeout_us else None), wanted


def renamed(error: InvalidRequest) -> InvalidRequest:
    """The violations of an EditRequest, by the names that this protocol gives its fields."""
    return InvalidRequest(*(Violation(_place(item.field), item.problem) for item in error.violations))


def words(enum: str) -> dict[str, int]:
    """The values of an enum of ours by their last words: SAMPLER_DDIM is ddim."""
    values = image_pb2.DESCRIPTOR.enum_types_by_name[enum].values
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.number for value in values if value.number}


SAMPLERS = words("Sampler")
FORMATS = words("ImageFormat")
SIZE_RULES = words("SizeRule")


def _too_long(request: pb.ModelInferRequest) -> Iterator[Violation]:
    for name in ("inputs", "outputs", "raw_input_contents"):
        length = len(getattr(request, name))
        if length > MAX_ENTRIES:
            yield Violation(name, f"has {length} entries, must have at most {MAX_ENTRIES}")


def _read_parameters(parameters: Parameters, edit: image_pb2.EditRequest, catalogue: Catalogue) -> int | None:
    """Fills all fields of an edit but its tensors; returns the timeout in microseconds."""
    edit.tier = parameters.text("tier")
    level = parameters.whole("priority", UINT64) or 0
    if not edit.tier and 1 <= level <= len(catalogue.priorities):  # 0 and levels that do not exist: the default
        edit.tier = catalogue.priorities[level - 1]
    edit.adapter = parameters.text("adapter")
    for name, bounds in (("steps", UINT32), ("seed", UINT64), ("preview_every", UINT32)):
        whole = parameters.whole(name, bounds)
        if whole is not None:
            setattr(edit, name, whole)
    for name in ("guidance_scale", "image_guidance_scale"):
        number = parameters.number(name)
        if number is not None:
            setattr(edit, name, number)
    edit.sampler = SAMPLERS.get(parameters.choice("sampler", tuple(SAMPLERS)), 0)  # type: ignore[assignment]
    edit.output_format = FORMATS.get(parameters.choice("output_format", tuple(FORMATS)), 0)  # type: ignore[assignment]
    edit.size_rule = SIZE_RULES.get(parameters.choice("size_rule", tuple(SIZE_RULES)), 0)  # type: ignore[assignment]
    return parameters.whole("timeout", UINT64)


def _read_tensors(tensors: Mapping[str, Tensor], edit: image_pb2.EditRequest, problems: list[Violation]) -> None:
    image = tensors.get(IMAGE)
    if image and image.datatype == UINT8:
        edit.image.tensor.data = image.data
        edit.image.tensor.height, edit.image.tensor.width = image.shape[:2]
        edit.output_format = edit.output_format or image_pb2.IMAGE_FORMAT_RAW  # answered as it was asked
    elif image:
        edit.image.encoded = image.data
    instruction = tensors.get(INSTRUCTION)
    if instruction:
        try:
            edit.instruction = instruction.data.decode()
        except UnicodeDecodeError as error:
            problems.append(Violation(f"inputs.{INSTRUCTION}", f"is no UTF-8 from byte {error.start} on"))


def _outputs(
    request: pb.ModelInferRequest, regions: Regions, problems: list[Violation]
) -> Mapping[str, Stretch | None]:
    if not request.outputs:
        return {EDITED: None, PREVIEW: None}
    outputs: dict[str, Stretch | None] = {}
    for asked in request.outputs:
        where = f"outputs.{asked.name[:MAX_NAME]}"
        stretch = stretch_of(Parameters(f"{where}.parameters", asked.parameters, problems))
        if asked.name not in (EDITED, PREVIEW):
            problems.append(Violation(where, f"does not exist; there are: {EDITED}, {PREVIEW}"))
        elif asked.name in outputs:
            problems.append(Violation(where, "comes twice"))
        if stretch:
            try:
                regions.check(stretch)
            except ValueError as error:
                problems.append(Violation(where, str(error)))
        outputs[asked.name] = stretch
    return outputs


def _place(field: str) -> str:
    """`image.encoded` is a part of the tensor `image`; what is no field of an EditRequest has its name already."""
    first = field.split(".")[0]
    if first not in image_pb2.EditRequest.DESCRIPTOR.fields_by_name:
        return field
    return _PLACES.get(first, f"parameters.{first}")
