"""A ModelInferRequest for a plain model, held against the model's configuration and written as a host has it.

What the tensors of a request are called and how they are shaped is looked at once for all requests that are alike;
their bytes are passed on as they came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from steploom_common.errors import InvalidRequest, Violation
from steploom_gateway.oip.parameters import MAX_ENTRIES, MAX_NAME, UINT64, Parameters
from steploom_gateway.oip.regions import Regions, Stretch
from steploom_gateway.oip.tensors import stretch_of
from steploom_gateway.plain.datatypes import field_of, raw_from_typed
from steploom_gateway.plain.model import PlainModel, Shape, TensorSpec
from steploom_gateway.plain.tensor_memory import Loan
from steploom_gateway.validation import is_request_id
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.worker.v1 import plain_pb2 as host_pb

Given = pb.ModelInferRequest.InferInputTensor
Signature = tuple[tuple[str, str, Shape], ...]  # name, datatype and shape of each input, as they came

_MAX_LAYOUTS = 256  # that are kept
_OURS = ("priority", "timeout", "triton_enable_empty_final_response")  # parameters that are not the model's


@dataclass(frozen=True)
class Layout:
    """What requests with the same inputs have in common."""

    places: tuple[int, ...]  # of each input of the configuration: where it is in the request; -1: absent
    shapes: tuple[Shape, ...]  # of each input of the configuration; empty where it is absent
    counts: tuple[int, ...]  # elements of each
    rows: int
    key: bytes  # equal where two requests may share a batch


@dataclass(frozen=True)
class PlainOrder:
    """A request that is in order."""

    layout: Layout
    data: Sequence[bytes]  # of each input of the request, raw
    outputs: Sequence[int] = ()  # that are asked for, by their place in the configuration; empty: all
    stretches: dict[str, Stretch] = field(default_factory=dict)  # outputs that go to shared memory of the client
    priority: int = 0
    timeout_us: int = 0
    request_id: str = ""  # for the host's log
    parameters: Mapping[str, pb.InferParameter] = field(default_factory=dict)  # for the model

    @property
    def num_bytes(self) -> int:
        """Of all inputs."""
        return sum(map(len, self.data))

    def write(self, item: host_pb.Item, loan: Loan | None = None) -> None:
        """As a host has it, with the bytes of tensors in shared memory where a block of it is given."""
        layout = self.layout
        if self.request_id:
            item.request_id = self.request_id
        for place, shape in zip(layout.places, layout.shapes, strict=True):
            if place < 0:
                item.inputs.add(is_absent=True)
            elif loan is None:
                item.inputs.add(shape=shape, data=self.data[place])
            else:
                item.inputs.add(shape=shape, region=loan.put(self.data[place]))
        if loan is not None:
            item.output_region.CopyFrom(loan.output)
        if self.outputs:
            item.outputs.extend(self.outputs)
        for name, value in self.parameters.items():
            item.parameters[name].CopyFrom(value)


class RequestReader:
    """Reads requests for one model.

    Args:
        model: whose they are.
        regions: shared memory that is registered.
        max_bytes: that a tensor may take of shared memory.
    """

    def __init__(self, model: PlainModel, regions: Regions, max_bytes: int) -> None:
        self.model = model
        self._regions = regions
        self._max_bytes = max_bytes
        self._layouts: dict[Signature, Layout] = {}
        self._output_places = {spec.name: place for place, spec in enumerate(model.outputs)}

    def is_quick(self, request: pb.ModelInferRequest) -> bool:
        """Whether `read` takes no time: nothing is copied from shared memory or converted."""
        return len(request.raw_input_contents) == len(request.inputs) > 0

    def read(self, request: pb.ModelInferRequest) -> PlainOrder:
        """What is asked for. May copy and convert: see `is_quick`.

        Raises:
            InvalidRequest: names each field that is not as it must be, with its bound.
            NotFound: a tensor lies in shared memory that is not registered.
        """
        inputs = request.inputs
        signature: Signature = tuple([(given.name, given.datatype, tuple(given.shape)) for given in inputs])
        layout = self._layouts.get(signature)
        if layout is None:
            layout = self._new_layout(signature)
        problems: list[Violation] = []
        data = self._data(request, layout, problems)
        order = self._order(request, layout, data, problems)
        if problems:
            raise InvalidRequest(*problems[:MAX_ENTRIES])
        return order

    def _order(
        self, request: pb.ModelInferRequest, layout: Layout, data: Sequence[bytes], problems: list[Violation]
    ) -> PlainOrder:
        request_id = request.id if request.id and is_request_id(request.id) else ""
        if not (request.parameters or request.outputs):
            return PlainOrder(layout, data, request_id=request_id)
        ours = {name: value for name, value in request.parameters.items() if name in _OURS}
        parameters = Parameters("parameters", ours, problems)
        priority = parameters.whole("priority", UINT64) or 0
        timeout_us = parameters.whole("timeout", UINT64) or 0
        parameters.switch("triton_enable_empty_final_response", default=False)  # the one answer is never empty
        others = {name: value for name, value in request.parameters.items() if name not in _OURS}
        outputs, stretches = self._outputs(request, problems)
        return PlainOrder(layout, data, outputs, stretches, priority, timeout_us, request_id, others)

    def _new_layout(self, signature: Signature) -> Layout:
        problems: list[Violation] = []
        names = [name for name, _, _ in signature]
        known = {spec.name: spec for spec in self.model.inputs}
        for name, datatype, shape in signature[:64]:
            try:
                self._check(known.get(name), names.count(name), datatype, shape)
            except ValueError as error:
                problems.append(Violation(_input(name), str(error)))
        problems += [
            Violation(_input(spec.name), "is missing")
            for spec in self.model.inputs
            if spec.name not in names and not spec.is_optional
        ]
        rows = self._rows(signature, problems)
        if problems:
            raise InvalidRequest(*problems[:MAX_ENTRIES])
        layout = self._layout(signature, rows)
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        self._layouts[signature] = layout
        return layout

    def _check(self, spec: TensorSpec | None, times: int, datatype: str, shape: Shape) -> None:
        if spec is None:
            there_are = ", ".join(spec.name for spec in self.model.inputs[:20])
            raise ValueError(f"does not exist; there {'is' if len(self.model.inputs) == 1 else 'are'}: {there_are}")
        if times > 1:
            raise ValueError(f"comes {times} times, must come once")
        if datatype != spec.datatype.name:
            raise ValueError(f"is {datatype[:20] or 'of no datatype'}, must be {spec.datatype.name}")
        self.model.check_shape(spec, shape)

    def _rows(self, signature: Signature, problems: list[Violation]) -> int:
        if problems or not self.model.max_rows or not signature:
            return 1
        (first, _, shape), *others = signature
        for name, _, other in others:
            if other[0] != shape[0]:
                problems.append(Violation(_input(name), f"has {other[0]} rows, must have {shape[0]} as {first} has"))
        return shape[0]

    def _layout(self, signature: Signature, rows: int) -> Layout:
        where = {name: place for place, (name, _, _) in enumerate(signature)}
        places = tuple(where.get(spec.name, -1) for spec in self.model.inputs)
        shapes = tuple(signature[place][2] if place >= 0 else () for place in places)
        own = [
            None if place < 0 else shape[1:] if self.model.max_rows else shape
            for place, shape in zip(places, shapes, strict=True)
        ]
        return Layout(places, shapes, tuple(math.prod(shape) for shape in shapes), rows, repr(own).encode())

    def _data(self, request: pb.ModelInferRequest, layout: Layout, problems: list[Violation]) -> Sequence[bytes]:
        """The raw bytes of each input of the request."""
        inputs, raw = request.inputs, request.raw_input_contents
        if len(raw) == len(inputs) and not any(given.parameters or given.HasField("contents") for given in inputs):
            self._check_sizes(request, layout, raw, problems)
            return raw
        found = self._gathered(request, layout, problems)
        if not problems:
            self._check_sizes(request, layout, found, problems)
        return found

    def _check_sizes(
        self, request: pb.ModelInferRequest, layout: Layout, data: Sequence[bytes], problems: list[Violation]
    ) -> None:
        for spec, place, count in zip(self.model.inputs, layout.places, layout.counts, strict=True):
            size = spec.datatype.num_bytes
            if place >= 0 and size and len(data[place]) != size * count:
                problem = (
                    f"has {len(data[place])} bytes, must have {size * count} for its shape as {spec.datatype.name}"
                )
                problems.append(Violation(_input(request.inputs[place].name), problem))

    def _gathered(self, request: pb.ModelInferRequest, layout: Layout, problems: list[Violation]) -> list[bytes]:
        """Where data are not all raw: in typed contents, or in shared memory."""
        inputs, raw = request.inputs, request.raw_input_contents
        num_wanted = sum("shared_memory_region" not in given.parameters for given in inputs)
        typed = [given.name for given in inputs if field_of(given.contents)]
        if raw and typed:
            for name in typed:
                problem = "has `contents` where there are raw_input_contents, must have one of them"
                problems.append(Violation(_input(name), problem))
            return []
        if raw and len(raw) != num_wanted:
            problem = f"has {len(raw)} entries, must have {num_wanted}: one for each input that is not in shared memory"
            problems.append(Violation("raw_input_contents", problem))
            return []
        in_order = iter(raw)
        specs = {place: spec for spec, place in zip(self.model.inputs, layout.places, strict=True)}
        counts = dict(zip(layout.places, layout.counts, strict=True))
        found = []
        for place, given in enumerate(inputs):
            is_shared = "shared_memory_region" in given.parameters
            own = next(in_order) if raw and not is_shared else None
            try:
                found.append(self._one(given, specs[place], counts[place], own, problems))
            except ValueError as error:
                problems.append(Violation(_input(given.name), str(error)))
                found.append(b"")
        return found

    def _one(self, given: Given, spec: TensorSpec, count: int, raw: bytes | None, problems: list[Violation]) -> bytes:
        stretch = stretch_of(Parameters(f"{_input(given.name)}.parameters", given.parameters, problems))
        if stretch is not None:
            if field_of(given.contents):
                raise ValueError("has `contents` beside shared memory, must have one of them")
            if stretch.size > self._max_bytes:
                raise ValueError(f"has {stretch.size} bytes of shared memory, must have at most {self._max_bytes}")
            data = self._regions.read(stretch)
            size = spec.datatype.num_bytes * count
            return data[:size] if size and len(data) > size else data  # the stretch may be larger than the tensor
        if raw is not None:
            return raw
        if not count:
            return b""
        if not field_of(given.contents):
            raise ValueError("has no data: neither raw_input_contents nor `contents` nor shared memory")
        return raw_from_typed(given.contents, spec.datatype, count)

    def _outputs(
        self, request: pb.ModelInferRequest, problems: list[Violation]
    ) -> tuple[Sequence[int], dict[str, Stretch]]:
        places: set[int] = set()
        stretches: dict[str, Stretch] = {}
        for asked in request.outputs[: 2 * len(self._output_places) + 1]:
            where = f"outputs.{asked.name[:MAX_NAME]}"
            place = self._output_places.get(asked.name)
            if place is None:
                there_are = ", ".join(list(self._output_places)[:20])
                problems.append(Violation(where, f"does not exist; there are: {there_are}"))
                continue
            if place in places:
                problems.append(Violation(where, "comes twice"))
            places.add(place)
            stretch = stretch_of(Parameters(f"{where}.parameters", asked.parameters, problems))
            if stretch is None:
                continue
            try:
                self._regions.check(stretch)
            except ValueError as error:
                problems.append(Violation(where, str(error)))
            stretches[asked.name] = stretch
        return ([] if len(places) == len(self._output_places) else sorted(places)), stretches


def _input(name: str) -> str:
    return f"inputs.{name[:MAX_NAME]}"
