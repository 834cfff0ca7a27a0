"""Events of an edit become answers of this protocol."""

from __future__ import annotations

from collections.abc import Mapping

from steploom_common.errors import InvalidRequest, SteploomError, Violation
from steploom_gateway.oip.names import EDITED, PREVIEW, VERSION
from steploom_gateway.oip.orders import FORMATS, Wanted
from steploom_gateway.oip.parameters import Value, parameter
from steploom_gateway.oip.regions import Regions
from steploom_gateway.oip.tensors import BYTES, UINT8, element
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.v1 import image_pb2

_FINAL = "triton_final_response"  # of a stream: the last answer to its request
_FORMAT_NAMES = {value: name for name, value in FORMATS.items()}
_TIMES = ("queue_s", "encode_s", "denoise_s", "decode_s", "total_s", "mean_rows_per_tick")


class Answers:
    """The answers to one request.

    Args:
        model_name: as it was asked.
        request_id: as it was asked; may be empty.
        wanted: which outputs, and where they go.
        regions: shared memory that is registered.
    """

    def __init__(self, model_name: str, request_id: str, wanted: Wanted, regions: Regions) -> None:
        self._model_name = model_name
        self._request_id = request_id
        self._wanted = wanted
        self._regions = regions

    def done(self, picture: image_pb2.EditResponse) -> pb.ModelInferResponse:
        """The picture, and what was done. May copy to shared memory: computes and blocks.

        Raises:
            InvalidRequest: it does not fit into the shared memory that was named.
            NotFound: that is no longer registered.
        """
        answer = self._bare(_facts(picture))
        if picture.image.HasField("tensor"):
            tensor = picture.image.tensor
            self._put(answer, EDITED, UINT8, (tensor.height, tensor.width, 3), tensor.data)
        else:
            self._put(answer, EDITED, BYTES, (1,), element(picture.image.encoded))
        return answer

    def progress(self, event: image_pb2.EditEvent) -> pb.ModelInferResponse:
        """What a stream hears before the picture: parameters, and a preview where there is one. Raises as `done`."""
        kind = event.WhichOneof("event") or ""
        facts: dict[str, Value] = {"event": kind}
        match kind:
            case "queued":
                facts |= {"request_id": event.queued.request_id, "predicted_s": event.queued.predicted_s}
            case "step":
                facts |= {"step": event.step.step, "steps": event.step.steps}
        answer = self._bare(facts)
        if event.step.HasField("preview"):
            self._put(answer, PREVIEW, BYTES, (1,), element(event.step.preview.encoded))
        return answer

    def _bare(self, facts: Mapping[str, Value]) -> pb.ModelInferResponse:
        return pb.ModelInferResponse(
            model_name=self._model_name,
            model_version=VERSION,
            id=self._request_id,
            parameters={name: parameter(value) for name, value in facts.items()},
        )

    def _put(
        self, answer: pb.ModelInferResponse, name: str, datatype: str, shape: tuple[int, ...], data: bytes
    ) -> None:
        if name not in self._wanted.outputs:
            return
        output = answer.outputs.add(name=name, datatype=datatype, shape=shape)
        stretch = self._wanted.outputs[name]
        # an entry for every output: clients look by its index, and read it even of one that lies in shared memory
        answer.raw_output_contents.append(b"" if stretch else data)
        if stretch is None:
            return
        try:
            self._regions.write(stretch, data)
        except ValueError as error:
            raise InvalidRequest(Violation(f"outputs.{name}", str(error))) from None
        place: dict[str, Value] = {"region": stretch.region, "offset": stretch.offset, "byte_size": len(data)}
        for key, value in place.items():
            output.parameters[f"shared_memory_{key}"].CopyFrom(parameter(value))


def streamed(answer: pb.ModelInferResponse, is_final: bool) -> pb.ModelStreamInferResponse:
    """An answer on a stream."""
    answer.parameters[_FINAL].bool_param = is_final
    return pb.ModelStreamInferResponse(infer_response=answer)


def failed(model_name: str, request_id: str, error: SteploomError) -> pb.ModelStreamInferResponse:
    """The end of one request of a stream that goes on."""
    answer = pb.ModelInferResponse(model_name=model_name, model_version=VERSION, id=request_id)
    answer.parameters["status"].string_param = error.status.name
    answer.parameters[_FINAL].bool_param = True
    return pb.ModelStreamInferResponse(error_message=str(error) or error.status.name, infer_response=answer)


def _facts(picture: image_pb2.EditResponse) -> dict[str, Value]:
    return {
        "request_id": picture.request_id,
        "seed": picture.seed,
        "tier": picture.tier,
        "adapter": picture.adapter,
        "output_format": _FORMAT_NAMES[picture.format],
        "height": picture.height,
        "width": picture.width,
        "ticks": picture.timings.ticks,
        **{name: float(getattr(picture.timings, name)) for name in _TIMES},
    }
