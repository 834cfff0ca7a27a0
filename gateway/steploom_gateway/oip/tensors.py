"""Tensors of a request as they come in: by raw bytes, by typed contents or from shared memory, never two of these."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from steploom_common.errors import Violation
from steploom_gateway.oip.parameters import MAX_NAME, UINT64, Parameters
from steploom_gateway.oip.regions import Regions, Stretch
from steploom_protos.inference import grpc_service_pb2 as pb

BYTES = "BYTES"
UINT8 = "UINT8"

Given = pb.ModelInferRequest.InferInputTensor

_LENGTH = struct.Struct("<I")  # before each element of BYTES
_CHUNK = 2**16  # numbers of typed contents that are converted at once, without a pause for other threads
_MAX_SIDE = 2**31  # what no picture has, and every field can hold


@dataclass(frozen=True)
class Tensor:
    """One input."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes  # of BYTES: its one element, without the length


@dataclass(frozen=True)
class Expected:
    """What an input may be."""

    forms: Mapping[str, tuple[int, ...]]  # datatype to shape; -1: any size

    def check(self, datatype: str, shape: tuple[int, ...]) -> None:
        """Whether a tensor is so.

        Raises:
            ValueError: says how it differs.
        """
        if datatype not in self.forms:
            raise ValueError(f"is {datatype[:20] or 'of no datatype'}, must be {' or '.join(self.forms)}")
        wanted = self.forms[datatype]
        if len(shape) != len(wanted) or not all(map(_fits, shape, wanted)):
            raise ValueError(f"has shape {_words(shape)}, must have {_words(wanted)} as {datatype}")


class Inputs:
    """The tensors of one request.

    Args:
        request: as it came in.
        expected: what there must be, by name.
        regions: shared memory that is registered.
        max_bytes: that a tensor may take of shared memory.
        problems: where violations go.
    """

    def __init__(
        self,
        request: pb.ModelInferRequest,
        expected: Mapping[str, Expected],
        regions: Regions,
        max_bytes: int,
        problems: list[Violation],
    ) -> None:
        self._request = request
        self._expected = expected
        self._regions = regions
        self._max_bytes = max_bytes
        self._problems = problems

    def read(self) -> dict[str, Tensor]:
        """Those that are as they must be, by name. Computes and blocks.

        Raises:
            NotFound: a tensor lies in shared memory that is not registered.
        """
        if not self._has_one_form():
            return {}
        raw = iter(self._request.raw_input_contents) if self._request.raw_input_contents else None
        tensors: dict[str, Tensor] = {}
        for given in self._request.inputs:
            own = next(raw) if raw is not None and not _is_shared(given) else None
            try:
                if given.name in tensors:
                    raise ValueError("comes twice")
                tensors[given.name] = self._tensor(given, own)
            except ValueError as error:
                self._refuse(given.name, str(error))
        named = [given.name for given in self._request.inputs]
        self._problems += [Violation(_path(name), "is missing") for name in self._expected if name not in named]
        return tensors

    def _has_one_form(self) -> bool:
        """Whether all data is raw, one entry for each input that is not in shared memory, or none of it is."""
        num_raw = len(self._request.raw_input_contents)
        if not num_raw:
            return True
        both = [given.name for given in self._request.inputs if _has_contents(given)]
        for name in both:
            self._refuse(name, "has `contents` where there are raw_input_contents, must have one of them")
        num_wanted = sum(not _is_shared(given) for given in self._request.inputs)
        if not both and num_raw != num_wanted:
            problem = f"has {num_raw} entries, must have {num_wanted}: one for each input that is not in shared memory"
            self._problems.append(Violation("raw_input_contents", problem))
        return not both and num_raw == num_wanted

    def _tensor(self, given: Given, raw: bytes | None) -> Tensor:
        expected = self._expected.get(given.name)
        if expected is None:
            raise ValueError(f"does not exist; there are: {', '.join(self._expected)}")
        shape = tuple(given.shape)
        expected.check(given.datatype, shape)
        return Tensor(given.datatype, shape, self._data(given, raw))

    def _data(self, given: Given, raw: bytes | None) -> bytes:
        stretch = stretch_of(Parameters(f"{_path(given.name)}.parameters", given.parameters, self._problems))
        if _has_contents(given):
            if stretch:
                raise ValueError("has `contents` beside shared memory, must have one of them")
            return _typed(given.contents, given.datatype)
        if stretch:
            raw = self._shared(stretch)
        if raw is None:
            raise ValueError("has no data: neither raw_input_contents nor `contents` nor shared memory")
        return raw if given.datatype != BYTES else _element(raw, is_exact=stretch is None)

    def _shared(self, stretch: Stretch) -> bytes:
        if stretch.size > self._max_bytes:
            raise ValueError(f"has {stretch.size} bytes of shared memory, must have at most {self._max_bytes}")
        return self._regions.read(stretch)

    def _refuse(self, name: str, problem: str) -> None:
        self._problems.append(Violation(_path(name[:MAX_NAME]), problem))


def element(data: bytes) -> bytes:
    """One element of BYTES, as raw contents hold it."""
    return _LENGTH.pack(len(data)) + data


def _element(raw: bytes, is_exact: bool) -> bytes:
    """The one element of BYTES in raw contents; shared memory may be larger than what lies in it."""
    if len(raw) < _LENGTH.size:
        raise ValueError(f"has {len(raw)} bytes, must have its length as uint32 and its bytes")
    (length,) = _LENGTH.unpack_from(raw)
    end = _LENGTH.size + length
    if len(raw) < end or (is_exact and len(raw) > end):
        raise ValueError(f"has {len(raw) - _LENGTH.size} bytes after its length, which says that there are {length}")
    return raw[_LENGTH.size : end]


def _typed(contents: pb.InferTensorContents, datatype: str) -> bytes:
    field = "bytes_contents" if datatype == BYTES else "uint_contents"
    others = [item.name for item in contents.DESCRIPTOR.fields if item.name != field and getattr(contents, item.name)]
    if others:
        raise ValueError(f"has {others[0]}, must have {field} as {datatype}")
    if datatype == BYTES:
        if len(contents.bytes_contents) != 1:
            raise ValueError(f"has {len(contents.bytes_contents)} elements, must have 1")
        return contents.bytes_contents[0]
    numbers = contents.uint_contents
    try:
        return b"".join(bytes(numbers[at : at + _CHUNK]) for at in range(0, len(numbers), _CHUNK))
    except ValueError:
        raise ValueError("has an element above 255, must have none as UINT8") from None


def stretch_of(parameters: Parameters) -> Stretch | None:
    """Where in shared memory a tensor lies or goes; None: nowhere."""
    region = parameters.text("shared_memory_region")
    size = parameters.whole("shared_memory_byte_size", UINT64)
    offset = parameters.whole("shared_memory_offset", UINT64)
    parameters.finish()
    return Stretch(region, offset or 0, size or 0) if region else None


def _has_contents(given: Given) -> bool:
    return any(getattr(given.contents, field.name) for field in given.contents.DESCRIPTOR.fields)


def _is_shared(given: Given) -> bool:
    return "shared_memory_region" in given.parameters


def _path(name: str) -> str:
    return f"inputs.{name}"


def _fits(size: int, rule: int) -> bool:
    return 1 <= size <= _MAX_SIDE and rule in (-1, size)


def _words(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape[:8]))}]"
