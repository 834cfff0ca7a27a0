"""Items of a batch become arrays, and arrays the items' answers: nothing is mixed up, and nothing passes unchecked."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from hypothesis import given, settings
from hypothesis import strategies as st

from steploom_common.arena import ArenaViews, default_directory
from steploom_engine_worker.plain.datatypes import DATATYPES, pack_strings, unpack_strings
from steploom_engine_worker.plain.errors import WrongItem, WrongOutput
from steploom_engine_worker.plain.inputs import Gatherer
from steploom_engine_worker.plain.model_config import completed
from steploom_engine_worker.plain.outputs import Answerer, before, entry, executed
from steploom_engine_worker.plain.spec import ModelSpec, spec_of
from steploom_protos.inference import model_config_pb2
from steploom_protos.worker.v1 import plain_pb2 as pb

VIEWS = ArenaViews(default_directory(Path("/tmp")))


def spec(tensors: str, max_batch_size: int = 8) -> ModelSpec:
    text = f"max_batch_size: {max_batch_size}\n{tensors}"
    return spec_of(completed(text_format.Parse(text, model_config_pb2.ModelConfig()), "model"))


def both(data_type: str, dims: str = "-1", more: str = "") -> str:
    """An input and an output alike."""
    return "".join(
        f'{kind} [ {{ name: "{kind[0]}", data_type: {data_type}, dims: [ {dims} ] {more} }} ]\n'
        for kind in ("input", "output")
    )


def packed(strings: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(string)) + string for string in strings)


def gather(model: ModelSpec, *items: pb.Item) -> Any:
    return Gatherer(model, VIEWS).gather(items)


def one(shape: list[int], data: bytes) -> pb.Item:
    return pb.Item(inputs=[pb.Tensor(shape=shape, data=data)])


def answered(model: ModelSpec, array: Any, items: Sequence[pb.Item], rows: list[int]) -> pb.BatchDone:
    """The answer to a batch, as its caller reads it."""
    answers = Answerer(model, VIEWS).answer({"o": array}, items, rows)
    message = pb.ExecutedBatches.FromString(executed(pb.BatchDone(batch_id=300, wait_ns=1), answers))
    assert [(done.batch_id, done.wait_ns) for done in message.done] == [(300, 1)]
    return message.done[0]


def refusal(model: ModelSpec, *items: pb.Item) -> str:
    with pytest.raises(WrongItem) as caught:
        gather(model, *items)
    return str(caught.value)


NUMBERS = sorted(number for number, datatype in DATATYPES.items() if datatype.name not in ("BYTES", "BOOL"))


@settings(max_examples=150)
@given(st.data())
def test_what_goes_in_comes_out_at_its_place(data: st.DataObject) -> None:
    """For any datatype, rows and shape: the model sees all rows in order, and each item gets its own back."""
    number = data.draw(st.sampled_from(sorted(DATATYPES)))
    datatype = DATATYPES[number]
    tail = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    counts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    model = spec(both(model_config_pb2.DataType.Name(number), ", ".join("-1" for _ in tail)), 12)
    items, rows = [], []
    for count in counts:
        elements = count * int(np.prod(tail))
        if datatype.is_bytes:
            raw = packed(data.draw(st.lists(st.binary(max_size=5), min_size=elements, max_size=elements)))
        elif datatype.name == "BOOL":
            raw = bytes(data.draw(st.lists(st.integers(0, 1), min_size=elements, max_size=elements)))
        else:
            size = elements * datatype.num_bytes
            raw = data.draw(st.binary(min_size=size, max_size=size))
        items.append(one([count, *tail], raw))
        rows.append(raw)
    gathered = gather(model, *items)
    array = gathered.arrays["i"]
    assert array.shape == (sum(counts), *tail)
    assert array.dtype == datatype.numpy
    assert gathered.rows == counts
    done = answered(model, array, items, gathered.rows)
    assert [answer.outputs[0].data for answer in done.items] == rows
    assert [list(answer.outputs[0].shape) for answer in done.items] == [[count, *tail] for count in counts]


def test_one_request_is_not_copied() -> None:
    array = gather(spec(both("TYPE_FP32")), one([2, 3], bytes(24))).arrays["i"]
    assert isinstance(array.base.base if isinstance(array.base, np.ndarray) else array.base, bytes)
    assert not array.flags.writeable


def test_several_are_copied_once_and_may_be_written_to() -> None:
    array = gather(spec(both("TYPE_FP32")), one([1, 3], bytes(12)), one([1, 3], bytes(12))).arrays["i"]
    assert array.flags.writeable


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ([1, 3], 12, "input 'i' has shape [1, 3], must have [-1, 2]"),
        ([2], 8, "input 'i' has shape [2], must have [-1, 2]"),
        ([], 0, "input 'i' has shape [], must have [-1, 2]"),
        ([1, 2, 1], 8, "input 'i' has shape [1, 2, 1], must have [-1, 2]"),
        ([1, -2], 8, "input 'i' has shape [1, -2], must have [-1, 2]"),
        (
            [0, 2],
            0,
            "input 'i' has shape [0, 2], must have at least 1 row, and rows of [2] as the batch's first request",
        ),
        ([-1, 2], 8, "input 'i' has shape [-1, 2], must have at least 1 row"),
        ([9, 2], 72, "the batch has 9 rows, must have at most max_batch_size, 8"),
        ([2**40, 2], 8, "the batch has 1099511627776 rows, must have at most max_batch_size, 8"),
        ([1, 2], 7, "input 'i' has 7 bytes, must have 8 for its shape"),
        ([1, 2], 9, "input 'i' has 9 bytes, must have 8 for its shape"),
        ([1, 2], 0, "input 'i' has 0 bytes, must have 8 for its shape"),
    ],
)
def test_a_tensor_is_held_against_the_config(shape: list[int], size: int, message: str) -> None:
    assert refusal(spec(both("TYPE_FP32", "2")), one(shape, bytes(size))).startswith(message)


def test_a_size_that_is_open_is_no_way_to_negative_sizes() -> None:
    assert refusal(spec(both("TYPE_FP32")), one([1, -1], b"")) == "input 'i' has shape [1, -1], must have [-1, -1]"


def test_bytes_of_one_item_do_not_make_up_for_those_of_another() -> None:
    model = spec(both("TYPE_UINT8", "4"))
    assert "has 3 bytes, must have 4" in refusal(model, one([1, 4], b"abc"), one([1, 4], b"defgh"))
    strings = spec(both("TYPE_STRING", "1"))
    refused = refusal(strings, one([1, 1], b""), one([1, 1], packed([b"a", b"b"])))
    assert refused == "input 'i': 0 bytes hold 0 elements, must be 1"


def test_inputs_agree_on_their_rows() -> None:
    model = spec(both("TYPE_INT8") + 'input [ { name: "j", data_type: TYPE_INT8, dims: [ 1 ] } ]')
    item = pb.Item(inputs=[pb.Tensor(shape=[2, 1], data=b"ab"), pb.Tensor(shape=[1, 1], data=b"c")])
    assert refusal(model, item) == "input 'j' has other sizes of the first dimension than the inputs before it"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes hold 0 elements, must be 2"),
        (packed([b"a"]), "5 bytes hold 1 elements, must be 2"),
        (packed([b"a", b"b", b"c"]), "15 bytes hold more elements, must be 2"),
        (packed([b"a"]) + b"\1\0", "element 1 ends beyond the 7 bytes that there are"),
        (packed([b"a"]) + b"\xff\xff\xff\xff", "element 1 ends beyond the 9 bytes that there are"),
    ],
)
def test_strings_are_as_many_as_the_shape_says(data: bytes, message: str) -> None:
    assert refusal(spec(both("TYPE_STRING")), one([1, 2], data)) == f"input 'i': {message}"


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_strings_survive_their_raw_form(strings: list[bytes]) -> None:
    data = packed(strings)
    assert unpack_strings(data, len(strings)) == strings
    array = np.empty(len(strings), object)
    array[:] = strings
    assert pack_strings(array) == data


def test_strings_may_be_text_and_nothing_else() -> None:
    model = spec(both("TYPE_STRING"))
    done = answered(model, np.array([["é", b"b"]], object), [pb.Item()], [1])
    assert done.items[0].outputs[0].data == packed(["é".encode(), b"b"])
    with pytest.raises(WrongOutput, match="output 'o' has an element of int, must have bytes or str alone"):
        answered(model, np.array([[1]], object), [pb.Item()], [1])


def test_a_bool_is_0_or_1() -> None:
    model = spec(both("TYPE_BOOL"))
    assert gather(model, one([1, 2], b"\0\1")).arrays["i"].tolist() == [[False, True]]
    assert refusal(model, one([1, 2], b"\0\2")) == "input 'i' has a byte above 1, must have 0 and 1 alone as BOOL"


OPTIONAL = both("TYPE_INT8") + 'input [ { name: "j", data_type: TYPE_INT8, dims: [ 1 ], optional: true } ]'


def test_an_optional_input_is_there_for_all_or_for_none() -> None:
    model = spec(OPTIONAL)
    given_both = pb.Item(inputs=[pb.Tensor(shape=[1, 1], data=b"a"), pb.Tensor(shape=[1, 1], data=b"b")])
    without = pb.Item(inputs=[pb.Tensor(shape=[1, 1], data=b"a"), pb.Tensor(is_absent=True)])
    assert sorted(gather(model, given_both).arrays) == ["i", "j"]
    assert sorted(gather(model, without, without).arrays) == ["i"]
    assert "in all or in none" in refusal(model, without, given_both)
    assert "has shape []" in refusal(model, given_both, without)
    first = pb.Item(inputs=[pb.Tensor(is_absent=True), pb.Tensor(is_absent=True)])
    assert refusal(model, first) == "input 'i' is absent, must be given: it is not optional"


def test_a_model_of_optional_inputs_alone_gets_one_at_least() -> None:
    model = spec(
        'input [ { name: "i", data_type: TYPE_INT8, dims: [ 1 ], optional: true } ]' + both("TYPE_INT8").splitlines()[1]
    )
    assert (
        refusal(model, pb.Item(inputs=[pb.Tensor(is_absent=True)])) == "all inputs are absent, must have one at least"
    )


def test_without_a_batch_tensors_are_as_they_are() -> None:
    model = spec(both("TYPE_UINT8", "-1, 2"), max_batch_size=0)
    gathered = gather(model, one([3, 2], b"abcdef"))
    assert gathered.arrays["i"].shape == (3, 2)
    done = answered(model, gathered.arrays["i"], [pb.Item()], gathered.rows)
    assert (list(done.items[0].outputs[0].shape), done.items[0].outputs[0].data) == ([3, 2], b"abcdef")
    both_items = (one([3, 2], b"abcdef"), one([3, 2], b"abcdef"))
    assert refusal(model, *both_items) == "the batch has 2 requests, must have 1 where max_batch_size is 0"


@pytest.mark.parametrize(
    ("dims", "inner", "shape", "inside"),
    [
        ("6", "2, 3", [2, 6], (2, 2, 3)),
        ("1", "", [2, 1], (2,)),
        ("-1, 2", "2, -1", [2, 3, 2], (2, 2, 3)),
    ],
)
def test_another_shape_inside_the_model(dims: str, inner: str, shape: list[int], inside: tuple[int, ...]) -> None:
    model = spec(both("TYPE_UINT8", dims, f"reshape {{ shape: [ {inner} ] }}"))
    data = bytes(range(int(np.prod(shape))))
    gathered = gather(model, one(shape, data))
    assert gathered.arrays["i"].shape == inside
    done = answered(model, gathered.arrays["i"], [pb.Item()], gathered.rows)
    assert (list(done.items[0].outputs[0].shape), done.items[0].outputs[0].data) == (shape, data)
    wrong = np.zeros((2, 99), np.uint8)
    with pytest.raises(WrongOutput, match=re.escape("output 'o' has shape [2, 99], must have")):
        answered(model, wrong, [pb.Item()], [2])


@given(st.integers(1, 15), st.one_of(st.integers(0, 2**40), st.sampled_from([127, 128, 16383, 16384])))
def test_what_stands_before_a_field(field: int, size: int) -> None:
    """As protobuf writes it: compared by the size alone, without so many bytes."""
    assert before(field, size) == bytes([field << 3 | 2]) + _VarintBytes(size)


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 5000, 20000])
def test_answers_of_every_length_are_as_protobuf_writes_them(size: int) -> None:
    model = spec(both("TYPE_UINT8") + 'output [ { name: "p", data_type: TYPE_UINT8, dims: [ -1 ] } ]')
    array = np.arange(3 * size, dtype=np.int64).astype(np.uint8).reshape(3, size)
    answerer = Answerer(model, VIEWS)
    for _ in range(2):  # what is made once is used again
        answers = answerer.answer({"o": array, "p": array[:, :1]}, [pb.Item(), pb.Item()], [1, 2])
    for answer, own in zip(answers, (array[:1], array[1:]), strict=True):
        outputs = [pb.Tensor(shape=part.shape, data=part.tobytes()) for part in (own, own[:, :1])]
        assert pb.BatchDone.FromString(b"".join(answer)) == pb.BatchDone(items=[pb.ItemDone(outputs=outputs)])
        if size:
            assert b"".join(answer) == entry(pb.ItemDone(outputs=outputs))
