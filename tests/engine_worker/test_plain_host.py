"""The model host behind gRPC: batches in, answers out, models that come and go."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
from plain_house import (
    DOUBLE,
    EXAMPLES,
    ONE_INPUT,
    PATIENCE_S,
    House,
    are_loaded,
    item,
    numbers,
    open_house,
    write_model,
)

from steploom_common.arena import Arena, ArenaViews, default_directory
from steploom_engine_worker.plain.instance import Instance
from steploom_engine_worker.plain.program import Origin
from steploom_engine_worker.plain.program_loader import forget
from steploom_engine_worker.plain.repository import Repository
from steploom_engine_worker.plain.spec import Placement
from steploom_engine_worker.plain.work import Work
from steploom_protos.inference import model_config_pb2
from steploom_protos.worker.v1 import plain_pb2 as pb

# A model that waits for a file, so that tests say when a batch ends: no sleeps.
GATED = """
    import time
    from pathlib import Path

    class Model:
        def __init__(self, config, folder):
            self.folder = Path(folder).parent

        def infer(self, inputs, parameters):
            (self.folder / "begun").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.01)
            return {"y": inputs["x"] + FACTOR}
"""
# One that raises what its first number says.
RAISING = """
    import threading

    class Model:
        def __init__(self, config, folder):
            pass

        def infer(self, inputs, parameters):
            kind = int(inputs["x"][0, 0])
            if kind == 1:
                raise ValueError("a secret of the model")
            if kind == 2:
                raise SystemExit(7)
            if kind == 3:
                raise KeyboardInterrupt
            if kind == 4:
                import ctypes
                thread = ctypes.c_ulong(threading.get_ident())
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))
            if kind == 5:
                raise MemoryError
            return {"y": inputs["x"]}
"""
WRONG = """
    import numpy as np

    class Model:
        def __init__(self, config, folder):
            pass

        def infer(self, inputs, parameters):
            x = inputs["x"]
            return eval(parameters[0]["give"])
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@pytest.fixture
async def house(repository: Path, tmp_path: Path) -> AsyncIterator[House]:
    """A host of one model that doubles."""
    write_model(repository, "double")
    async with open_house(repository, tmp_path) as opened:
        yield opened


async def appears(file: Path) -> None:
    await becomes(file.exists)


async def becomes(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - the other side is threads
            await asyncio.sleep(0.01)


def times(factor: int) -> str:
    """A model's code."""
    return DOUBLE.replace("* 2", f"* {factor}")


async def test_a_batch_is_answered_item_by_item(house: House) -> None:
    done = await house.run("double", item([[1, 2]]), item([[3, 4], [5, 6]]), item([[7, 8]]))
    assert [numbers(answer) for answer in done.items] == [[[2, 4]], [[6, 8], [10, 12]], [[14, 16]]]
    assert not done.HasField("error")
    assert done.start_unix_ns > 0
    assert min(done.wait_ns, done.compute_input_ns, done.compute_infer_ns, done.compute_output_ns) > 0


async def test_several_batches_of_a_message_are_all_answered(house: House) -> None:
    sent = await house.send_all([("double", [item([[number]])]) for number in range(5)])
    assert [numbers((await house.answer(batch)).items[0]) for batch in sent] == [[[2 * n]] for n in range(5)]


async def test_two_streams_have_their_own_batches(house: House) -> None:
    other = House(house.channel, house.shutdown, house.serving)
    first, second = await asyncio.gather(house.run("double", item([[1]])), other.run("double", item([[2]])))
    assert (first.batch_id, second.batch_id) == (1, 1)
    assert (numbers(first.items[0]), numbers(second.items[0])) == ([[2]], [[4]])


async def test_outputs_that_are_not_asked_for_stay_away(repository: Path, tmp_path: Path) -> None:
    code = """
        class Model:
            def __init__(self, config, folder): pass
            def infer(self, inputs, parameters): return {"y": inputs["x"], "z": inputs["x"] + 1}
    """
    config = ONE_INPUT + 'output [ { name: "z", data_type: TYPE_FP32, dims: [ -1 ] } ]'
    write_model(repository, "two", code, config)
    async with open_house(repository, tmp_path) as house:
        done = await house.run("two", item([[1]]), item([[2]], outputs=[1]), item([[3]], outputs=[2]))
    assert [[numbers(output) for output in answer.outputs] for answer in done.items] == [[[[1]], [[2]]], [[[3]]], []]
    assert done.items[2].error.kind == pb.ERROR_KIND_INVALID
    assert done.items[2].error.message == "outputs: has 2, each must be below 2"


async def test_a_wrong_item_fails_alone(house: House) -> None:
    good, short = item([[1, 2]]), item([[3, 4]])
    short.inputs[0].data = short.inputs[0].data[:-1]
    done = await house.run("double", good, short, item([[5, 6]]), item())
    assert [numbers(done.items[place]) for place in (0, 2)] == [[[2, 4]], [[10, 12]]]
    assert done.items[1].error.kind == pb.ERROR_KIND_INVALID
    assert done.items[1].error.message == "input 'x' has 7 bytes, must have 8 for its shape"
    assert done.items[3].error.message == "inputs: has 0 entries, must have 1"


async def test_items_that_do_not_fit_together_are_refused_together(house: House) -> None:
    done = await house.run("double", item([[1, 2]]), item([[1, 2, 3]]))
    assert done.error.kind == pb.ERROR_KIND_INVALID
    assert "has shape [1, 3]" in done.error.message
    assert not done.items


async def test_a_batch_has_a_bound(house: House) -> None:
    done = await house.run("double", item(np.zeros((5, 1), np.float32)), item(np.zeros((4, 1), np.float32)))
    assert done.error.message == "the batch has 9 rows, must have at most max_batch_size, 8"


@pytest.mark.parametrize(
    ("model", "version", "kind", "message"),
    [
        ("nowhere", 0, pb.ERROR_KIND_UNAVAILABLE, "model 'nowhere' is not ready"),
        ("double", 9, pb.ERROR_KIND_UNAVAILABLE, "version 9 of model 'double' is not served; there are: 1"),
    ],
)
async def test_what_is_not_served_is_refused(house: House, model: str, version: int, kind: int, message: str) -> None:
    done = await house.run(model, item([[1]]), version=version)
    assert (done.error.kind, done.error.message) == (kind, message)
    assert done.start_unix_ns == 0


async def test_an_empty_batch_is_refused(house: House) -> None:
    assert (await house.run("double")).error.message == "items: is empty, must have one at least"


@pytest.mark.parametrize("kind", [1, 2, 3, 5])
async def test_a_model_that_raises_fails_its_batch_and_no_more(
    repository: Path, tmp_path: Path, kind: int, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(repository, "raising", RAISING)
    async with open_house(repository, tmp_path) as house:
        done = await house.run("raising", item([[kind]], request_id="who"), item([[0]]))
        assert done.error.kind == pb.ERROR_KIND_FAILED
        assert done.error.message == f"the model failed on this request; error id {done.error.error_id}"
        assert not done.items
        assert numbers((await house.run("raising", item([[0]]))).items[0]) == [[0]]
    told = next(record for record in caplog.records if done.error.error_id in record.getMessage())
    assert "who" in told.getMessage()
    assert told.exc_info is not None
    assert ("a secret of the model" in caplog.text) == (kind == 1)


async def test_an_exception_between_batches_does_not_take_the_thread(repository: Path, tmp_path: Path) -> None:
    write_model(repository, "raising", RAISING)
    async with open_house(repository, tmp_path) as house:
        sent = [await house.send("raising", item([[4]])) for _ in range(3)]
        done = [await house.answer(batch) for batch in sent]
        assert {answer.error.kind for answer in done} <= {0, pb.ERROR_KIND_FAILED}
        assert numbers((await house.run("raising", item([[0]]))).items[0]) == [[0]]


def test_what_is_raised_in_a_threads_own_code_does_not_end_it() -> None:
    """As an exception does that a model has set off in its thread for later."""

    class Queue(SimpleQueue[Work | None]):
        is_first = True

        def get(self, *arguments: Any) -> Work | None:
            if self.is_first:
                self.is_first = False
                raise SystemExit
            return super().get(*arguments)

    source = Repository(EXAMPLES / "plain-models").read("identity")
    origin = Origin(source.spec, source.backend, source.files[1], "steploom_plain_models.test")
    queue = Queue()
    place = Placement(model_config_pb2.ModelInstanceGroup.KIND_CPU)
    instance = Instance("test", origin, place, (), queue, ArenaViews(Path("/tmp")), lambda _: None)
    instance.start()
    answers: SimpleQueue[bytes] = SimpleQueue()
    queue.put(Work(pb.Batch(batch_id=3, model="identity", items=[item([[1]])]), answers.put, 0))
    queue.put(None)
    done = pb.ExecutedBatches.FromString(answers.get(timeout=PATIENCE_S)).done[0]
    assert (done.batch_id, numbers(done.items[0])) == (3, [[1]])
    instance.ended.result(PATIENCE_S)
    forget(origin)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        ("{}", "output 'y' is missing"),
        ("{'y': x, 'w': x}", "output 'w' is given, and is not in the config"),
        ("{'y': x.astype('f8')}", "output 'y' is float64, must be float32"),
        ("{'y': x[:1]}", "output 'y' has shape [1, 2], must have [2, -1]"),
        ("{'y': x[0]}", "output 'y' has shape [2], must have [2, -1]"),
        ("{'y': x.tolist()}", "output 'y' is list, must be an array"),
        ("x", "infer gave ndarray, must give a dict of arrays by name"),
    ],
)
async def test_a_wrong_output_is_named(repository: Path, tmp_path: Path, give: str, message: str) -> None:
    write_model(repository, "wrong", WRONG)
    async with open_house(repository, tmp_path) as house:
        done = await house.run("wrong", item([[1, 2]], parameters={"give": give}), item([[3, 4]]))
    assert (done.error.kind, done.error.message, done.error.error_id) == (pb.ERROR_KIND_OUTPUT, message, "")


async def test_outputs_need_not_lie_in_one_piece(repository: Path, tmp_path: Path) -> None:
    write_model(repository, "wrong", WRONG)
    async with open_house(repository, tmp_path) as house:
        give = {"give": "{'y': np.asfortranarray(x)[:, ::-1]}"}
        done = await house.run("wrong", item([[1, 2, 3]], parameters=give), item([[4, 5, 6]]))
    assert [numbers(answer) for answer in done.items] == [[[3, 2, 1]], [[6, 5, 4]]]


async def test_parameters_and_rows_of_each_request_reach_the_model(repository: Path, tmp_path: Path) -> None:
    code = """
        import numpy as np

        class Model:
            def __init__(self, config, folder): pass
            def infer(self, inputs, parameters):
                told = [repr((rows, sorted(given.items()))) for given, rows in zip(parameters, parameters.rows)]
                rows = [[word] for word, count in zip(told, parameters.rows) for _ in range(count)]
                return {"y": np.array(rows, object)}
    """
    config = ONE_INPUT.replace('name: "y", data_type: TYPE_FP32', 'name: "y", data_type: TYPE_STRING')
    write_model(repository, "told", code, config)
    async with open_house(repository, tmp_path) as house:
        given = {"a": 1, "b": 2.5, "c": "d", "e": True}
        done = await house.run("told", item([[1]], parameters=given), item([[1], [2]]))
    assert repr((1, sorted(given.items()))).encode() in done.items[0].outputs[0].data
    assert done.items[1].outputs[0].data.count(b"(2, [])") == 2


async def test_tensors_in_shared_memory(house: House, tmp_path: Path) -> None:
    arena = Arena(default_directory(tmp_path), 4096, 1)
    try:
        block = arena.borrow()
        assert block is not None
        data = np.arange(6, dtype=np.float32)
        arena.write(block.input, data.view(np.uint8))
        given = pb.Tensor(shape=[1, 6])
        given.region.path, given.region.offset, given.region.size = block.input.path, block.input.offset, 24
        request = pb.Item(inputs=[given])
        place = block.output
        request.output_region.path, request.output_region.lease = place.path, place.lease
        request.output_region.offset, request.output_region.size = place.offset, place.size
        done = await house.run("double", request, item([[1, 2, 3, 4, 5, 6]]))
        output = done.items[0].outputs[0]
        assert (output.data, output.region.offset, output.region.size) == (b"", place.offset, 24)
        written = arena.read(place, 1, 8).reshape(-1).view(np.float32)
        assert written.tolist() == (data * 2).tolist()
        assert numbers(done.items[1]) == [[2, 4, 6, 8, 10, 12]]

        arena.give_back(block)  # a loan that has ended: the answer has the output
        assert numbers((await house.run("double", request)).items[0]) == [(data * 2).tolist()]
        given.region.offset = 1_000_000
        wrong = await house.run("double", pb.Item(inputs=[given]), item([[1, 2, 3, 4, 5, 6]]))
        assert "input 'x' cannot be read from shared memory" in wrong.items[0].error.message
        assert numbers(wrong.items[1]) == [[2, 4, 6, 8, 10, 12]]
    finally:
        arena.close()


async def test_instances_run_beside_each_other(repository: Path, tmp_path: Path) -> None:
    code = """
        import threading
        meeting = threading.Barrier(3, timeout=60)

        class Model:
            def __init__(self, config, folder): assert config.instance_group[0].count == 1
            def infer(self, inputs, parameters):
                meeting.wait()
                return {"y": inputs["x"]}
    """
    write_model(repository, "meeting", code, ONE_INPUT + "instance_group [ { count: 2 }, { count: 1 } ]")
    async with open_house(repository, tmp_path) as house:
        assert (await house.models())["meeting"].instances == 3
        sent = await house.send_all([("meeting", [item([[1]])])] * 3)
        assert [(await house.answer(batch)).HasField("error") for batch in sent] == [False] * 3
        await asyncio.wait_for(house.unload("meeting"), PATIENCE_S)  # all of them end


async def test_a_broken_model_hinders_no_other(repository: Path, tmp_path: Path) -> None:
    write_model(repository, "double")
    write_model(repository, "unread", config="dims: [")
    write_model(repository, "raises", "raise RuntimeError('no such weights')")
    write_model(repository, "exits", "import sys; sys.exit(3)")
    write_model(repository, "empty", "class Other: pass")
    (repository / "nothing").mkdir()
    async with open_house(repository, tmp_path) as house:
        models = await house.models()
        assert numbers((await house.run("double", item([[1]]))).items[0]) == [[2]]
    states = {name: model.state for name, model in models.items()}
    assert states.pop("double") == pb.MODEL_STATE_READY
    assert set(states.values()) == {pb.MODEL_STATE_UNAVAILABLE}
    assert {
        name: model.reason.splitlines()[0] for name, model in models.items() if name not in ("double", "unread")
    } == {
        "raises": "RuntimeError: no such weights",
        "exits": "SystemExit: 3",
        "empty": "model.py: must have a class Model with a method infer",
        "nothing": "config.pbtxt: cannot be read: No such file or directory",
    }
    assert models["unread"].reason.startswith("config.pbtxt: is no ModelConfig as text: 3:")


async def test_load_again_takes_what_is_in_the_folder_now(house: House, repository: Path) -> None:
    write_model(repository, "double", times(3))
    assert numbers((await house.run("double", item([[1]]))).items[0]) == [[2]]
    model = await house.load("double")
    assert (model.generation, model.state, list(model.versions)) == (2, pb.MODEL_STATE_READY, [1])
    assert numbers((await house.run("double", item([[1]]))).items[0]) == [[3]]


async def test_a_model_that_is_loaded_anew_loses_no_batch(repository: Path, tmp_path: Path) -> None:
    """Batches that came before run on the old one to their end, those after on the new one."""
    folder = write_model(repository, "gated", GATED.replace("FACTOR", "1"))
    async with open_house(repository, tmp_path) as house:
        before = [await house.send("gated", item([[10]])) for _ in range(3)]
        await appears(folder / "begun")
        write_model(repository, "gated", GATED.replace("FACTOR", "2"))
        await house.load("gated")
        after = await house.send("gated", item([[10]]))
        (folder / "go").touch()
        assert [numbers((await house.answer(batch)).items[0]) for batch in before] == [[[11]]] * 3
        assert numbers((await house.answer(after)).items[0]) == [[12]]


async def test_a_stream_of_batches_sees_no_gap_when_a_model_is_loaded_anew(house: House, repository: Path) -> None:
    async def load() -> None:
        for factor in range(3, 8):
            write_model(repository, "double", times(factor))
            await house.load("double")

    loading = asyncio.create_task(load())
    seen: list[float] = []
    while not loading.done():
        done = await house.run("double", item([[1]]))
        assert not done.HasField("error"), done.error.message
        seen.append(numbers(done.items[0])[0][0])
    await loading
    assert seen == sorted(seen)
    assert numbers((await house.run("double", item([[1]]))).items[0]) == [[7]]


@pytest.mark.parametrize("seed", range(3))
async def test_batches_end_once_whatever_becomes_of_their_model(repository: Path, tmp_path: Path, seed: int) -> None:
    """Loads, loads anew, broken loads and unloads, in any order, beside batches: all have an end, and the right one."""
    random = Random(seed)
    write_model(repository, "m", times(2), ONE_INPUT + "instance_group { count: 3 }")
    write_model(repository, "double")

    async def change() -> None:
        for _ in range(25):
            code = random.choice([times(random.randint(2, 5)), "raise RuntimeError"])
            write_model(repository, "m", code, ONE_INPUT + "instance_group { count: 3 }")
            with suppress(grpc.aio.AioRpcError):  # not loaded, busy, or broken
                await (house.unload("m") if random.random() < 0.4 else house.load("m"))

    async def send(number: int) -> None:
        while not (changing[0].done() and changing[1].done()):
            items = [item([[number]]), item([[number + 1]])]
            done = await house.run("m", *items)
            if done.HasField("error"):
                assert done.error.kind == pb.ERROR_KIND_UNAVAILABLE, done.error.message
            else:
                first, second = (numbers(answer)[0][0] for answer in done.items)
                assert first / number == second / (number + 1)
                assert first / number in (2, 3, 4, 5)
            neighbour = await house.run("double", item([[number]]))
            assert numbers(neighbour.items[0]) == [[2 * number]]

    async with open_house(repository, tmp_path) as house:
        changing = [asyncio.create_task(change()) for _ in range(2)]
        await asyncio.gather(*(send(number) for number in range(1, 9)), *changing)
        write_model(repository, "m", times(7))
        await house.load("m")
        assert numbers((await house.run("m", item([[1]]))).items[0]) == [[7]]
    await becomes(lambda: not any(thread.name.startswith(("m/", "double/")) for thread in threading.enumerate()))


async def test_a_model_that_cannot_be_loaded_anew_serves_on(house: House, repository: Path) -> None:
    write_model(repository, "double", "raise RuntimeError('half written')")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.load("double")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "RuntimeError: half written" in (caught.value.details() or "")
    assert numbers((await house.run("double", item([[1]]))).items[0]) == [[2]]
    model = (await house.models())["double"]
    assert (model.state, model.generation, model.reason) == (pb.MODEL_STATE_READY, 1, "RuntimeError: half written")
    write_model(repository, "double")
    assert (await house.load("double")).generation == 3
    assert (await house.models())["double"].reason == ""


async def test_load_takes_a_config_in_place_of_the_folders(house: House) -> None:
    config = model_config_pb2.ModelConfig()
    config.CopyFrom((await house.models())["double"].config)
    config.max_batch_size = 2
    assert (await house.load("double", config=config)).config.max_batch_size == 2
    assert "must have at most max_batch_size, 2" in (await house.run("double", item([[1]] * 3))).error.message
    assert (await house.load("double")).config.max_batch_size == 8


async def test_unload_lets_batches_end(repository: Path, tmp_path: Path) -> None:
    folder = write_model(repository, "gated", GATED.replace("FACTOR", "1"))
    async with open_house(repository, tmp_path) as house:
        sent = [await house.send("gated", item([[10]])) for _ in range(2)]
        await appears(folder / "begun")
        unloading = asyncio.create_task(house.unload("gated"))
        await house.until(lambda now: now.models[0].state == pb.MODEL_STATE_UNLOADING)
        assert (await house.run("gated", item([[1]]))).error.kind == pb.ERROR_KIND_UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.load("gated")
        assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
        assert not unloading.done()
        (folder / "go").touch()
        await unloading
        assert [numbers((await house.answer(batch)).items[0]) for batch in sent] == [[[11]]] * 2
        model = (await house.models())["gated"]
        assert (model.state, model.reason) == (pb.MODEL_STATE_UNAVAILABLE, "unloaded")
        await becomes(lambda: not any("gated" in thread.name for thread in threading.enumerate()))
        assert (await house.load("gated")).generation == 2


@pytest.mark.parametrize("name", ["nowhere", "..", "../repository/double", "", "double/../double", "a" * 300, "x\0y"])
async def test_load_of_what_is_not_there(house: House, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.load(name)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "there is: double" in (caught.value.details() or "")
    assert list(await house.models()) == ["double"]


async def test_unload_of_what_is_not_loaded(house: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.unload("nowhere")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_the_index_has_what_was_never_loaded(repository: Path, tmp_path: Path) -> None:
    for name in ("double", "other", "third"):
        write_model(repository, name)
    write_model(repository, "double", version=3)
    (repository / ".hidden").mkdir()
    config = ONE_INPUT + "version_policy { all { } }"
    write_model(repository, "double", config=config)
    async with open_house(repository, tmp_path, load=["double", "third"]) as house:
        await house.unload("third")
        index = await house.stub.Index(pb.IndexRequest())
    ready, away = pb.MODEL_STATE_READY, pb.MODEL_STATE_UNAVAILABLE
    assert [(entry.name, entry.version, entry.state, entry.reason) for entry in index.entries] == [
        ("double", 1, ready, ""),
        ("double", 3, ready, ""),
        ("other", 0, away, ""),
        ("third", 0, away, "unloaded"),
    ]


async def test_versions_are_served_beside_each_other(repository: Path, tmp_path: Path) -> None:
    config = ONE_INPUT + "version_policy { all { } }"
    for version in (1, 2, 10):
        write_model(repository, "times", times(version), config, version)
    async with open_house(repository, tmp_path) as house:
        assert list((await house.models())["times"].versions) == [1, 2, 10]
        answers = [await house.run("times", item([[1]]), version=version) for version in (1, 2, 10, 0)]
    assert [numbers(done.items[0]) for done in answers] == [[[1]], [[2]], [[10]], [[10]]]


async def test_code_beside_a_model_can_be_imported(repository: Path, tmp_path: Path) -> None:
    code = """
        from .helper import FACTOR
        class Model:
            def __init__(self, config, folder): self.name = config.name
            def infer(self, inputs, parameters): return {"y": inputs["x"] * FACTOR}
    """
    for name, factor in (("one", 5), ("two.b", 6)):
        folder = write_model(repository, name, code)
        (folder / "1" / "helper.py").write_text(f"FACTOR = {factor}\n")
    async with open_house(repository, tmp_path) as house:
        assert numbers((await house.run("one", item([[1]]))).items[0]) == [[5]]
        assert numbers((await house.run("two.b", item([[1]]))).items[0]) == [[6]]


async def test_warm_up_and_close_of_a_class(repository: Path, tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        class Model:
            def __init__(self, config, folder): self.folder = Path(folder)
            def warm_up(self): (self.folder / "warm").touch()
            def close(self): (self.folder / "closed").touch()
            def infer(self, inputs, parameters): return {"y": inputs["x"]}
    """
    folder = write_model(repository, "careful", code)
    async with open_house(repository, tmp_path) as house:
        assert (folder / "1" / "warm").exists()
        assert not (folder / "1" / "closed").exists()
        await house.unload("careful")
        assert (folder / "1" / "closed").exists()


async def test_model_warmup_of_the_config_runs_before_a_model_serves(repository: Path, tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        class Model:
            def __init__(self, config, folder): self.file = Path(folder) / "seen"
            def infer(self, inputs, parameters):
                with self.file.open("a") as file:
                    print(inputs["x"].tolist(), parameters.rows, file=file)
                return {"y": inputs["x"]}
    """
    warm_up = """
        model_warmup [
            { name: "zeros", batch_size: 2, count: 2,
              inputs { key: "x" value { data_type: TYPE_FP32, dims: [ 2 ], zero_data: true } } },
            { name: "file", inputs { key: "x" value { data_type: TYPE_FP32, dims: [ 2 ], input_data_file: "two" } } }
        ]
    """
    folder = write_model(repository, "warm", code, ONE_INPUT + warm_up)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "two").write_bytes(np.array([1, 2], np.float32).tobytes())
    async with open_house(repository, tmp_path) as house:
        assert (await house.models())["warm"].state == pb.MODEL_STATE_READY
    zeros = "[[0.0, 0.0], [0.0, 0.0]] (2,)"
    assert (folder / "1" / "seen").read_text().splitlines() == [zeros, zeros, "[[1.0, 2.0]] (1,)"]


async def test_a_model_that_fails_at_warm_up_is_not_ready(repository: Path, tmp_path: Path) -> None:
    code = "class Model:\n  def __init__(self, c, f): pass\n  def infer(self, i, p): return {'y': i['x'][:, :1]}"
    config = ONE_INPUT.replace('"y", data_type: TYPE_FP32, dims: [ -1 ]', '"y", data_type: TYPE_FP32, dims: [ 2 ]')
    warm_up = 'inputs { key: "x" value { data_type: TYPE_FP32, dims: [ 2 ], random_data: true } }'
    write_model(repository, "cold", code, config + f'model_warmup [ {{ name: "w", {warm_up} }} ]')
    async with open_house(repository, tmp_path) as house:
        model = (await house.models())["cold"]
    assert model.state == pb.MODEL_STATE_UNAVAILABLE
    assert model.reason == "WrongOutput: output 'y' has shape [1, 1], must have [1, 2]"


async def test_a_draining_host_says_so_and_takes_nothing(repository: Path, tmp_path: Path) -> None:
    folder = write_model(repository, "gated", GATED.replace("FACTOR", "1"))
    async with open_house(repository, tmp_path) as house:
        sent = await house.send("gated", item([[1]]))
        await appears(folder / "begun")
        house.shutdown.signal()
        await house.until(lambda now: now.is_draining)
        refused = await house.run("gated", item([[1]]))
        assert (refused.error.kind, refused.error.message) == (pb.ERROR_KIND_UNAVAILABLE, "the host is ending")
        (folder / "go").touch()
        assert numbers((await house.answer(sent)).items[0]) == [[2]]


async def test_a_stream_that_breaks_leaves_nothing_open(repository: Path, tmp_path: Path) -> None:
    folder = write_model(repository, "gated", GATED.replace("FACTOR", "1"))
    async with open_house(repository, tmp_path, drain_s=3600) as house:
        other = House(house.channel, house.shutdown, house.serving)
        await other.send("gated", item([[1]]))
        await other.send("gated", item([[2]]))
        await appears(folder / "begun")
        other._call.cancel()
        (folder / "go").touch()
        assert numbers((await house.run("gated", item([[3]]))).items[0]) == [[4]]
        house.shutdown.signal()
        await asyncio.wait_for(asyncio.shield(house.serving), PATIENCE_S)  # no batch is open any more


async def test_a_stream_ends_when_its_caller_has_and_all_is_answered(repository: Path, tmp_path: Path) -> None:
    write_model(repository, "double")
    async with open_house(repository, tmp_path) as house:
        call = house.stub.Execute()
        await call.write(pb.ExecuteBatches(batches=[pb.Batch(batch_id=5, model="double", items=[item([[1]])])]))
        await call.done_writing()
        messages = [message async for message in call]
    assert [done.batch_id for message in messages for done in message.done] == [5]


async def test_answers_that_are_too_large_for_a_message(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steploom_engine_worker.plain.instance._MAX_ANSWER", 1000)
    large = item(np.zeros((1, 300), np.float32))
    done, small = await house.run("double", large), await house.run("double", item([[1]]))
    assert done.error.kind == pb.ERROR_KIND_OUTPUT
    assert "must have at most 1000 without shared memory" in done.error.message
    assert numbers(small.items[0]) == [[2]]


async def test_answers_go_out_in_messages_of_a_bounded_size(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steploom_engine_worker.plain.service._MAX_BYTES", 1000)
    folder = write_model(repository, "gated", GATED.replace("FACTOR", "1"))
    (folder / "go").touch()
    async with open_house(repository, tmp_path) as house:
        batches = [pb.Batch(batch_id=n + 1, model="gated", items=[item([[0.0] * 100])]) for n in range(50)]
        call = house.stub.Execute()
        await call.write(pb.ExecuteBatches(batches=batches))
        await call.done_writing()
        messages = [message async for message in call]
    assert [done.batch_id for message in messages for done in message.done] == list(range(1, 51))
    assert max(len(message.done) for message in messages) <= 3


async def test_a_stream_is_read_no_further_while_too_much_of_it_is_open(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steploom_engine_worker.plain.service._MAX_OPEN", 2)
    folder = write_model(repository, "gated", GATED.replace("FACTOR", "1"))
    write_model(repository, "double")
    async with open_house(repository, tmp_path) as house:
        sent = [await house.send("gated", item([[number]])) for number in range(2)]
        sent += [await house.send("nowhere", item([[1]]))]  # would be refused at once if it were read
        waiting = asyncio.create_task(house.answer(sent[2]))
        await appears(folder / "begun")
        other = House(house.channel, house.shutdown, house.serving)
        for _ in range(20):
            assert numbers((await other.run("double", item([[1]]))).items[0]) == [[2]]
        assert not waiting.done()
        (folder / "go").touch()
        kinds = [(await house.answer(batch)).error.kind for batch in sent[:2]] + [(await waiting).error.kind]
    assert kinds == [0, 0, pb.ERROR_KIND_UNAVAILABLE]


async def test_bytes_that_are_no_message_end_their_stream_alone(house: House) -> None:
    call: grpc.aio.StreamStreamCall[bytes, bytes] = house.channel.stream_stream(
        "/steploom.worker.v1.ModelHost/Execute"
    )()
    await call.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert numbers((await house.run("double", item([[1]]))).items[0]) == [[2]]


async def test_folders_that_can_be_no_models_are_told(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    write_model(repository, "double")
    write_model(repository, "-flag")
    async with open_house(repository, tmp_path) as house:
        assert list(await house.models()) == ["double"]
    assert "'-flag' is no model" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "shape"),
    [
        ("identity", np.arange(6, dtype=np.float32).tobytes(), [2, 3]),
        ("identity_int64", np.arange(4).tobytes(), [1, 4]),
        ("identity_bytes", b"\x03\0\0\0abc\0\0\0\0", [1, 2]),
    ],
)
async def test_the_examples_give_back_what_they_get(tmp_path: Path, name: str, data: bytes, shape: list[int]) -> None:
    async with open_house(EXAMPLES / "plain-models", tmp_path) as house:
        await house.until(are_loaded)
        request = pb.Item(inputs=[pb.Tensor(shape=shape, data=data)])
        slow = item(parameters={"delay_ms": 20, "delay_ms_per_item": 5.0})
        slow.inputs.add(shape=shape, data=data)
        done = await house.run(name, request, slow)
    for answer in done.items:
        assert (list(answer.outputs[0].shape), answer.outputs[0].data) == (shape, data)
    assert done.compute_infer_ns >= (20 + 5 * shape[0]) * 1_000_000
