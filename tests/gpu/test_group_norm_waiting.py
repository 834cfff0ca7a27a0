"""Group normalisation in one launch whose programs wait for each other, beside the two launches that do the same."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from steploom_kernels import group_norm as module
from steploom_kernels import group_norm_kernels as kernels
from steploom_kernels.group_norm import group_norm_reference, group_norm_triton, new_counters
from steploom_kernels.group_norm_plans import (
    MIN_MULTIPROCESSORS,
    Form,
    Picture,
    Plan,
    Run,
    can_wait,
    constants,
    default_plan,
)

on_a_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and can_wait(torch.device("cuda", 0))),
    reason=f"needs a GPU of {MIN_MULTIPROCESSORS} multiprocessors",
)
# n, channels, h, w, groups
SHAPES = [
    (12, 320, 64, 64, 32),  # Stable Diffusion's first level: 32 programs wait for each other
    (3, 320, 64, 64, 32),
    (12, 1920, 16, 16, 32),  # two programs, in many runs
    (5, 2560, 16, 16, 32),  # runs of 256 lanes
    (2, 640, 24, 24, 32),  # the last tile is not full
    (1, 90, 23, 29, 3),  # groups in one run, which does not fill its lanes
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


class Inputs(NamedTuple):
    """Of one call."""

    x: Tensor
    beside: Tensor | None
    weight: Tensor
    bias: Tensor
    shift: Tensor
    groups: int

    def run(self, counters: Tensor | None, plan: Plan | None = None) -> Tensor:
        x, beside, weight, bias, shift, groups = self
        return group_norm_triton(
            x, weight, bias, groups, silu=True, shift=shift, beside=beside, counters=counters, plan=plan
        )

    def exact(self) -> Tensor:
        x, weight, bias, shift = (each.double() for each in (self.x, self.weight, self.bias, self.shift))
        beside = None if self.beside is None else self.beside.double()
        return group_norm_reference(x, weight, bias, self.groups, silu=True, shift=shift, beside=beside)

    @property
    def picture(self) -> Picture:
        rest = 0 if self.beside is None else self.beside.shape[1]
        channels, height, width = self.x.shape[1:]
        return Picture(height * width, channels + rest, self.groups, channels if rest else 0)


def inputs(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float16,
    border: int = 0,
    device: str = "cuda",
) -> Inputs:
    """Random; with a border the channels from there on are beside the others."""
    n, channels, height, width, groups = shape
    generator = torch.Generator().manual_seed(channels + height)
    x = torch.randn(n, height, width, channels, generator=generator) + 3.0 * torch.randn(channels, generator=generator)
    weight, bias = torch.randn(2, channels, generator=generator).to(device, dtype)
    shift = torch.randn(n, channels, generator=generator).to(device, dtype)
    parts = [part.to(device, dtype).contiguous().permute(0, 3, 1, 2) for part in x.tensor_split([border], 3)]
    if not border:
        return Inputs(parts[1], None, weight, bias, shift, groups)
    return Inputs(parts[0], parts[1], weight, bias, shift, groups)


def is_at_rest(counters: Tensor) -> bool:
    """Every counter has been flipped whole times: its value is 0 or -2**31."""
    return bool((counters & 0x7FFFFFFF == 0).all())


def test_what_waits_computes_what_two_launches_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU programs run one by one, and none can wait: the second of two runs finds what the first wrote."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("on a GPU they wait")
    monkeypatch.setattr(kernels, "_wait_for_all", lambda counter: None)
    given = inputs((2, 64, 11, 7, 2), border=24, device="cpu")
    plan, picture = Plan(Run(1, 32), 16, 4), given.picture
    fixed = constants(plan, picture, measures=True, applies=True, silu=True, shifted=True)
    out = torch.full((2, 64, 11, 7), torch.nan, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    moments = torch.full((2, 2, fixed["padded_chunks"], 2), torch.nan)
    counters = new_counters(torch.device("cpu"))
    x, beside, weight, bias, shift, _ = given
    for _ in range(2):
        kernels.group_norm_kernel[(plan.programs(77), 2, 2)](
            out, x, beside, weight, bias, shift, moments, counters, shift.stride(0), 1e-5, **fixed
        )
    assert torch.equal(out, given.run(None, plan))


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_launch_gives_what_two_do(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    """Bit for bit in every launch; but for float32, where sums of products are contracted otherwise, to a rounding."""
    given = inputs(shape, dtype)
    counters = new_counters(given.x.device)
    assert default_plan(given.picture).form(given.picture.pixels, may_wait=True) is Form.WAITING
    two = given.run(None)
    one = given.run(counters)
    for _ in range(50):
        assert torch.equal(given.run(counters), one)
    if dtype is torch.float32:
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(one, two)
    assert is_at_rest(counters)
    tolerance = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(two.double(), given.exact(), rtol=tolerance, atol=1e-5)


@on_a_gpu
@pytest.mark.parametrize(("channels", "border"), [(640, 320), (960, 640)])
def test_side_by_side(channels: int, border: int) -> None:
    given = inputs((12, channels, 64, 64, 32), border=border)
    counters = new_counters(given.x.device)
    two = given.run(None)
    assert all(torch.equal(given.run(counters), two) for _ in range(50))
    torch.testing.assert_close(two.double(), given.exact(), rtol=2.0**-10, atol=1e-5)


@on_a_gpu
def test_a_picture_is_the_same_in_any_batch() -> None:
    given = inputs(SHAPES[0])
    counters = new_counters(given.x.device)
    together = given.run(counters)
    for row in range(len(given.x)):
        one = given._replace(x=given.x[row : row + 1], shift=given.shift[row : row + 1])
        assert torch.equal(one.run(counters)[0], together[row])


@on_a_gpu
def test_counters_serve_launches_of_any_number_of_programs() -> None:
    many = [inputs(shape) for shape in SHAPES]
    counters = new_counters(many[0].x.device)
    two = [given.run(None) for given in many]
    for _ in range(20):
        for given, expected in zip(many, two, strict=True):
            assert torch.equal(given.run(counters), expected)
    assert is_at_rest(counters)


@on_a_gpu
def test_more_pictures_than_there_are_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three launches: of two pictures of three runs each, of two, of one."""
    given = inputs((5, 320, 32, 32, 32))
    two = given.run(None)
    monkeypatch.setattr(module, "_COUNTERS", 7)
    counters = new_counters(given.x.device)
    assert torch.equal(given.run(counters), two)
    assert is_at_rest(counters)
    assert (counters != 0).any(1).tolist() == [True] * 3 + [False] * 4  # flipped three times; twice, or never


@on_a_gpu
def test_launches_in_three_streams_at_once_beside_products() -> None:
    """With counters of their own, while products of matrices come and go, which fill multiprocessors whole."""
    many = [inputs(shape) for shape in (SHAPES[0], SHAPES[2], (24, 640, 32, 32, 32))]
    device = many[0].x.device
    expected, counters = [given.run(None) for given in many], [new_counters(device) for _ in many]
    streams = [torch.cuda.Stream(device) for _ in many]  # type: ignore[no-untyped-call]
    square, other = torch.randn(2048, 2048, device=device, dtype=torch.float16), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    results: list[list[Tensor]] = [[] for _ in many]
    for _ in range(100):
        with torch.cuda.stream(other):
            torch.mm(square, square)
        for stream, given, own, found in zip(streams, many, counters, results, strict=True):
            with torch.cuda.stream(stream):
                found[:] = [*found[-3:], given.run(own)]
    torch.cuda.synchronize()
    for found, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(result, wanted) for result in found)
    assert all(is_at_rest(own) for own in counters)


@on_a_gpu
def test_a_recorded_launch_is_replayed_beside_another() -> None:
    """Counters go on where they were: nothing resets them between replays of graphs in two streams."""
    many = [inputs(SHAPES[0]), inputs(SHAPES[2])]
    device = many[0].x.device
    expected, counters = [given.run(None) for given in many], [new_counters(device) for _ in many]
    graphs, outputs = [], []
    for given, own in zip(many, counters, strict=True):
        given.run(own)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(5):
                result = given.run(own)
        graphs.append(graph)
        outputs.append(result)
    streams = [torch.cuda.Stream(device) for _ in many]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    for _ in range(20):
        for result in outputs:
            result.fill_(torch.nan)
        torch.cuda.synchronize()
        for _ in range(10):
            for stream, graph in zip(streams, graphs, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(result, wanted) for result, wanted in zip(outputs, expected, strict=True))
    assert all(is_at_rest(own) for own in counters)
