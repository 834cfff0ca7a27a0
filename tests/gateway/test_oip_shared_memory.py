"""Tensors through shared memory that clients register: bounds, names, and memory that changes under our hands."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from gateway_house import House, arenas, decoded, encoded, opened, picture, request, status_of
from oip_requests import Input, Output, element, infer_request, parameters, stub_of

from steploom_common.errors import Exhausted, Exists, InvalidRequest, NotFound, SteploomError, Unsupported
from steploom_gateway.oip.regions import DIRECTORY, Regions, Stretch
from steploom_protos.inference import grpc_service_pb2 as pb

Status = grpc.StatusCode

SIZE = 2**16

needs_shm = pytest.mark.skipif(not os.access(DIRECTORY, os.W_OK), reason=f"{DIRECTORY} cannot be written")


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    """Of objects in the test's own folder; `a` has 100 bytes."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    return Regions(3, tmp_path)


def test_what_is_registered_is_read_and_written_within_its_bounds(regions: Regions, tmp_path: Path) -> None:
    regions.register("r", "/a", 10, 50)
    assert regions.read(Stretch("r", 0, 3)) == bytes([10, 11, 12])
    assert regions.read(Stretch("r", 49, 1)) == bytes([59])
    regions.write(Stretch("r", 48, 2), b"xy")
    assert (tmp_path / "a").read_bytes()[57:62] == bytes([57]) + b"xy" + bytes([60, 61])
    for stretch in (Stretch("r", 0, 51), Stretch("r", 50, 1), Stretch("r", 2**63, 1)):
        for use in (regions.check, regions.read, lambda stretch: regions.write(stretch, b"z")):
            with pytest.raises(ValueError, match="'r', which has 50"):
                use(stretch)
    with pytest.raises(ValueError, match="has 3 bytes, must have at most 2"):
        regions.write(Stretch("r", 0, 2), b"xyz")
    with pytest.raises(NotFound):
        regions.read(Stretch("other", 0, 1))
    regions.unregister("r")
    with pytest.raises(NotFound):
        regions.read(Stretch("r", 0, 1))


@pytest.mark.parametrize(
    ("key", "offset", "size", "field"),
    [
        ("/a", 0, 101, "byte_size"),
        ("/a", 101, 1, "byte_size"),
        ("/a", 2**64 - 1, 1, "byte_size"),
        ("/a", 0, 0, "byte_size"),
        ("/missing", 0, 1, "key"),
        ("/folder", 0, 1, "key"),
        ("/link", 0, 1, "key"),
        ("/pipe", 0, 1, "key"),
        ("/steploom-arena-1-abc", 0, 1, "key"),
        *((key, 0, 1, "key") for key in ("", "/", "/..", "/.", "/../a", "../a", "/folder/b", "//a", "a\0b", "x" * 300)),
    ],
)  # fmt: skip
def test_only_memory_objects_of_the_folder_can_be_registered(
    regions: Regions, tmp_path: Path, key: str, offset: int, size: int, field: str
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder/b", "steploom-arena-1-abc"):
        (tmp_path / name).write_bytes(b"secret")
    (tmp_path / "link").symlink_to("folder/b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest) as caught:
        regions.register("r", key, offset, size)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert regions.listed("") == []


def test_names_and_numbers_are_bounded(regions: Regions) -> None:
    for name in ("", "x" * 201):
        with pytest.raises(InvalidRequest):
            regions.register(name, "/a", 0, 1)
    for name in "abc":
        regions.register(name, "a", 0, 1)
    with pytest.raises(Exists):
        regions.register("a", "/a", 0, 1)
    with pytest.raises(Exhausted):
        regions.register("d", "/a", 0, 1)
    regions.unregister("nobody")
    regions.unregister("b")
    assert [region.name for region in regions.listed("")] == ["a", "c"]
    regions.unregister("")
    assert regions.listed("") == []


def test_nothing_is_opened_while_it_is_switched_off(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(Unsupported, match=r"gateway\.shared_memory_regions"):
        Regions(0, tmp_path).register("r", "/a", 0, 1)


def num_open(path: Path) -> int:
    """Descriptors of this process that show a file."""
    links = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sum(os.path.realpath(link) == str(path) for link in links)


def test_files_are_closed_with_their_regions(regions: Regions, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        regions.register("r", "/a", 0, 101)
    assert num_open(tmp_path / "a") == 0
    regions.register("r", "/a", 0, 100)
    assert num_open(tmp_path / "a") == 1
    regions.unregister("r")
    assert num_open(tmp_path / "a") == 0


def test_memory_that_its_owner_shortens_is_an_error_and_stays_short(regions: Regions, tmp_path: Path) -> None:
    regions.register("r", "/a", 0, 100)
    os.truncate(tmp_path / "a", 50)
    with pytest.raises(ValueError, match="has become shorter"):
        regions.read(Stretch("r", 40, 20))
    with pytest.raises(ValueError, match="has become shorter"):
        regions.write(Stretch("r", 40, 20), bytes(20))
    assert (tmp_path / "a").stat().st_size == 50


def test_reads_beside_registration_see_their_own_region_alone(regions: Regions, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"\xff" * 100)
    wrong: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                data = regions.read(Stretch("r", 0, 100))
            except (NotFound, SteploomError):
                continue
            if data != bytes(range(100)):
                wrong.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(300):
        regions.register("r", "/a", 0, 100)
        regions.unregister("r")
        regions.register("other", "/b", 0, 100)  # may get the number that the file before had
        regions.unregister("other")
    stop.set()
    reader.join()
    assert not wrong


@pytest.fixture
async def sharing(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path, shared_memory_regions=4) as house:
        yield house
    assert not arenas(tmp_path)


@pytest.fixture
def memory() -> Iterator[Callable[[str], Path]]:
    """Makes memory objects of `SIZE` bytes, by the last part of their names."""
    made: list[Path] = []

    def make(name: str) -> Path:
        path = DIRECTORY / f"steploom-test-{os.getpid()}-{name}"
        path.write_bytes(bytes(SIZE))
        made.append(path)
        return path

    yield make
    for path in made:
        path.unlink(missing_ok=True)


async def register(house: House, path: Path, name: str = "", size: int = SIZE, offset: int = 0) -> None:
    asked = pb.SystemSharedMemoryRegisterRequest(
        name=name or path.name[-1], key=f"/{path.name}", byte_size=size, offset=offset
    )
    await stub_of(house).SystemSharedMemoryRegister(asked)


def placed(region: str, size: int, offset: int = 0) -> dict[str, pb.InferParameter]:
    values: dict[str, str | int] = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return parameters(values | ({"shared_memory_offset": offset} if offset else {}))


def shared_request(size: int, raw: bool, **places: dict[str, pb.InferParameter]) -> pb.ModelInferRequest:
    """A request whose picture lies in region `i`, and whose answer goes into region `o`."""
    asked = infer_request(output_format="raw" if raw else "png")
    image = Input(name="image", datatype="UINT8" if raw else "BYTES", shape=[32, 32, 3] if raw else [1])
    for name, value in places.get("image", placed("i", size)).items():
        image.parameters[name].CopyFrom(value)
    asked.inputs[0].CopyFrom(image)
    asked.raw_input_contents.pop(0)
    asked.outputs.append(Output(name="edited_image", parameters=places.get("output", placed("o", SIZE))))
    return asked


@needs_shm
@pytest.mark.parametrize("raw", [False, True])
async def test_a_picture_goes_in_and_out_through_memory(
    sharing: House, memory: Callable[[str], Path], raw: bool
) -> None:
    sent = picture(seed=3)
    data = sent.tobytes() if raw else element(encoded(sent))
    inside, outside = memory("i"), memory("o")
    inside.write_bytes(bytes(16) + data + bytes(SIZE - 16 - len(data)))
    await register(sharing, inside)
    await register(sharing, outside)
    size = len(data) if raw else SIZE - 16  # a region may be larger than the element in it
    answer = await stub_of(sharing).ModelInfer(shared_request(0, raw, image=placed("i", size, 16)))
    (output,) = answer.outputs
    assert list(answer.raw_output_contents) == [b""]
    written = output.parameters["shared_memory_byte_size"].int64_param
    assert output.parameters["shared_memory_region"].string_param == "o"
    result = outside.read_bytes()[:written]
    pixels = result if raw else decoded(result[4:]).tobytes()
    assert pixels == (255 - sent).tobytes()
    assert outside.stat().st_size == SIZE


@needs_shm
async def test_status_lists_what_is_registered(sharing: House, memory: Callable[[str], Path]) -> None:
    await register(sharing, memory("i"), "mine", 100, 28)
    stub = stub_of(sharing)
    for name in ("", "mine"):
        regions = (await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name=name))).regions
        row = regions["mine"]
        assert (row.name, row.offset, row.byte_size) == ("mine", 28, 100)
        assert row.key.startswith("/steploom-test-")
    error = await status_of(stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name="other")))
    assert error.code() is Status.NOT_FOUND
    await stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="mine"))
    assert not (await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())).regions
    assert "system_shared_memory" in (await stub.ServerMetadata(pb.ServerMetadataRequest())).extensions


@needs_shm
@pytest.mark.parametrize(
    ("places", "status", "words"),
    [
        ({"image": placed("x", 9)}, Status.NOT_FOUND, "shared memory region 'x' does not exist"),
        ({"output": placed("x", 9)}, Status.NOT_FOUND, "shared memory region 'x' does not exist"),
        ({"image": placed("i", SIZE + 1)}, Status.INVALID_ARGUMENT, "inputs.image: has bytes 0 to 65537"),
        ({"image": placed("i", 9, SIZE)}, Status.INVALID_ARGUMENT, "inputs.image: has bytes 65536 to 65545"),
        ({"image": placed("i", 2**62)}, Status.INVALID_ARGUMENT, "of shared memory, must have at most"),
        ({"image": placed("i", 9, -1)}, Status.INVALID_ARGUMENT, "inputs.image.parameters.shared_memory_offset: is -1"),
        ({"image": placed("i", 2)}, Status.INVALID_ARGUMENT, "inputs.image: has 2 bytes, must have its length"),
        ({"output": placed("o", 9, SIZE)}, Status.INVALID_ARGUMENT, "outputs.edited_image: has bytes 65536 to"),
        ({"output": placed("o", 9)}, Status.INVALID_ARGUMENT, "outputs.edited_image: has"),
    ],
)
async def test_bounds(
    sharing: House,
    memory: Callable[[str], Path],
    places: dict[str, dict[str, pb.InferParameter]],
    status: grpc.StatusCode,
    words: str,
) -> None:
    inside = memory("i")
    data = element(encoded(picture()))
    inside.write_bytes(data + bytes(SIZE - len(data)))
    await register(sharing, inside)
    await register(sharing, memory("o"))
    error = await status_of(stub_of(sharing).ModelInfer(shared_request(SIZE, raw=False, **places)))
    assert error.code() is status
    assert words in str(error.details())
    assert await sharing.is_clean()


@needs_shm
async def test_contents_beside_memory_are_refused(sharing: House, memory: Callable[[str], Path]) -> None:
    await register(sharing, memory("i"))
    asked = shared_request(9, raw=False)
    asked.inputs[0].contents.bytes_contents.append(b"x")
    del asked.raw_input_contents[:]
    asked.inputs[1].contents.bytes_contents.append(b"words")
    error = await status_of(stub_of(sharing).ModelInfer(asked))
    assert error.code() is Status.NOT_FOUND  # the output's region
    del asked.outputs[:]
    error = await status_of(stub_of(sharing).ModelInfer(asked))
    assert "inputs.image: has `contents` beside shared memory" in str(error.details())


async def test_switched_off_nothing_is_registered(house: House) -> None:
    stub = stub_of(house)
    asked = pb.SystemSharedMemoryRegisterRequest(name="a", key="/a", byte_size=1)
    error = await status_of(stub.SystemSharedMemoryRegister(asked))
    assert error.code() is Status.UNIMPLEMENTED
    assert not (await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())).regions
    await stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
    error = await status_of(stub.ModelInfer(shared_request(9, raw=False)))
    assert error.code() is Status.NOT_FOUND


@needs_shm
async def test_an_arena_of_ours_cannot_be_read_through(sharing: House) -> None:
    await sharing.stub.Edit(request())
    asked = pb.SystemSharedMemoryRegisterRequest(name="a", key="/steploom-arena-1", byte_size=1)
    error = await status_of(stub_of(sharing).SystemSharedMemoryRegister(asked))
    assert error.code() is Status.INVALID_ARGUMENT
    assert np.array_equal(decoded((await sharing.stub.Edit(request())).image.encoded), 255 - picture())
