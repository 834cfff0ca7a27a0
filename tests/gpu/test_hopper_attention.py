"""Attention on Hopper: that it compiles to what it is made for, and on such a GPU that it is attention."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import Tensor

from steploom_kernels import hopper_attention as module
from steploom_kernels.attention import attention, attention_reference, attention_triton
from steploom_kernels.hopper_attention import HopperPlan, attention_hopper, candidate_plans, fits, usual_plan

pytest.importorskip("triton")


# Compiles plans, given as JSON: of each what the compiler said, bytes of the stack, and PTX.
COMPILE = """
import contextlib, io, json, os, sys, tempfile
from pathlib import Path
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from steploom_kernels import hopper_attention as module
from steploom_kernels.aot import _resources

def source(width, dtype, plan):
    signature = dict.fromkeys(module._hopper_kernel.arg_names, "i32") | {"out": f"*{dtype}", "scale": "fp32"}
    constants = module.constants(plan, width)
    tiles = (("q", 16 * plan.warps, plan.k_parts), ("k", plan.block_n, plan.k_parts), ("v", plan.block_n, plan.v_parts))
    for name, tokens, parts in tiles:
        for index in range(2):
            if index < len(parts):
                layout = module.layout_of(parts[index])
                signature[f"{name}{index + 1}"] = f"tensordesc<{dtype}[1, 1, {tokens}, {parts[index]}],{layout!r}>"
            else:
                constants[f"{name}{index + 1}"] = None
    signature |= dict.fromkeys(constants, "constexpr")
    places = {name: (index,) for index, name in enumerate(signature)}
    return GluonASTSource(module._hopper_kernel, signature, {places[name]: constants[name] for name in constants})

knobs.nvidia.dump_ptxas_log = True
told = []
for width, dtype, plan in json.loads(sys.argv[1]):
    plan = module.HopperPlan(*plan)
    plan = plan._replace(k_parts=tuple(plan.k_parts), v_parts=tuple(plan.v_parts))
    with contextlib.redirect_stdout(io.StringIO()) as log:
        compiled = triton.compile(
            source(width, dtype, plan),
            target=GPUTarget("cuda", 90, 32),
            options=module.options(plan),
        )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        told.append([log.getvalue(), _resources(cubin)[1], compiled.asm["ptx"], compiled.asm["ttgir"]])
print(json.dumps(told))
"""
Form = tuple[int, str, HopperPlan]
USUAL: list[Form] = [
    *((width, dtype, module._PLANS[width]) for width in module.HOPPER_WIDTHS for dtype in ("fp16", "bf16")),
    *((width, "fp16", module._PLANS[width]._replace(groups=2)) for width in module.HOPPER_WIDTHS),
]
SUMS_BESIDE = (40, "fp16", HopperPlan(2, 128, 3, 1, (32, 16), (32, 16)))
SCORES_BESIDE = (40, "fp16", HopperPlan(2, 128, 3, 2, (32, 16), (32, 16)))
EVERYTHING = (
    40,
    "fp16",
    HopperPlan(1, 64, 4, 0, (32, 16), (32, 8), polynomial=2, ones=True, stays=False, warps=8, programs=2),
)
FORMS = list(dict.fromkeys([*USUAL, SUMS_BESIDE, SCORES_BESIDE, EVERYTHING]))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Form, tuple[str, int, str, str]]:
    """Of each form what ptxas said, bytes of the stack, PTX, and what Triton made it from."""
    if not module.HAS_GLUON:
        pytest.skip("Triton has no Gluon, or an older one")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # compiled anew: ptxas says nothing of what comes from the cache
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMPILE, json.dumps(FORMS)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(FORMS, map(tuple, json.loads(done.stdout)), strict=True))


Compiled = dict[Form, tuple[str, int, str, str]]


def test_no_usual_form_spills_and_none_waits_for_each_product(compiled: Compiled) -> None:
    for log, stack, _, _ in (compiled[form] for form in USUAL):
        assert "registers" in log  # ptxas did speak
        assert "serialized" not in log
        assert stack == 0


@pytest.mark.parametrize(("width", "steps"), [(40, 3), (64, 4), (80, 5)])
def test_products_are_of_a_heads_parts(width: int, steps: int, compiled: Compiled) -> None:
    """Scores take a step for each 16 columns of a head, values for each 16 keys."""
    plan = module._PLANS[width]
    sizes = Counter(product_sizes(compiled[width, "fp16", plan][2]))
    expected = Counter({plan.block_n: plan.groups * steps})
    for columns in (*plan.v_parts, *[8] * plan.ones):
        expected[columns] += plan.groups * plan.block_n // 16
    assert sizes == expected


def test_a_plan_says_who_sums_up_and_who_takes_powers(compiled: Compiled) -> None:
    scores = 64 * 64 // 128  # a thread's, of a block
    for form, powers in ((USUAL[0], scores), (EVERYTHING, scores * 6 // 8)):
        ptx = compiled[form][2]
        assert len(re.findall(r"\bex2\.", ptx)) == form[2].groups * (powers + 2)  # two rows shrink
        assert not re.search(r"add\.f32 .*\n.*shfl", ptx)  # shares are summed up by products


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_blocks_are_counted_on_from_turn_to_turn(form: Form, compiled: Compiled) -> None:
    """The loop over turns, of each group and of who fetches, has a count that blocks' numbers are made from."""
    made = compiled[form][3]
    counts = re.findall(r"scf\.for .* iter_args\((%\w+) = %\w+\) -> \(i32\)", made)
    assert len(counts) == form[2].groups + 1
    for count in set(counts):
        assert re.search(rf"arith\.muli {count}, %\w+ : i32", made)


def test_keys_and_values_come_as_bulk_copies_and_registers_go_to_who_computes(compiled: Compiled) -> None:
    for (_, _, plan), (_, _, ptx, _) in compiled.items():
        assert "cp.async.bulk.tensor.4d" in ptx
        assert "ld.global" not in ptx
        _, of_groups, of_fetching = module.registers(plan)
        assert re.search(rf"setmaxnreg\.inc\S+\s+{of_groups};", ptx)
        assert re.search(rf"setmaxnreg\.(dec|inc)\S+\s+{of_fetching};", ptx)


def test_sums_go_on_beside_powers(compiled: Compiled) -> None:
    """When a block's scores have come, and products with values have not, its powers come first, and then a loop."""
    ptx = re.sub(r"\s+", " ", compiled[SUMS_BESIDE][2])
    beside = ptx[ptx.index("wgmma.wait_group.sync.aligned 2;") :]
    beside = beside[: beside.index("wgmma.wait_group.sync.aligned 0;")]
    assert beside.count("ex2.approx") == 128 * 64 // 128 + 2
    assert beside.rindex("ex2.approx") < beside.rindex("mbarrier.try_wait")


def test_scores_come_beside_powers(compiled: Compiled) -> None:
    """A block's powers are taken with the next one's products begun."""
    between_waits = re.sub(r"\s+", " ", compiled[SCORES_BESIDE][2]).split("wgmma.wait_group")
    assert any(re.search(r"wgmma\.mma_async.* ex2\..* wgmma\.mma_async", part) for part in between_waits)
    assert not any(
        re.search(r"wgmma\.mma_async.* ex2\.", part)
        for part in re.sub(r"\s+", " ", compiled[USUAL[0]][2]).split("wgmma.wait_group")
    )


def product_sizes(ptx: str) -> list[int]:
    return [int(size) for size in re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16", ptx)]


def test_programs_have_fewer_groups_where_many_would_run_out_of_work() -> None:
    """At 12 pictures three groups have 16 whole turns; at one two turns of two groups are less than of three."""
    assert module._PLANS[64].groups == 3
    assert [usual_plan(64, 4096, 8 * rows, 132).groups for rows in (12, 3, 1)] == [3, 3, 2]
    for heads in range(1, 200):
        for width in module.HOPPER_WIDTHS:
            usual = module._PLANS[width]
            plan = usual_plan(width, 4096, heads, 132)
            assert 1 < plan.groups <= usual.groups
            assert plan._replace(groups=usual.groups) == usual  # else results would change


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (HopperPlan(3, 128, 3, 0, (64,), (64,)), (128, 160, 24)),
        (HopperPlan(4, 64, 4, 0, (64,), (64,)), (96, 112, 32)),
        (HopperPlan(2, 128, 3, 0, (64,), (64,)), (168, 240, 24)),
        (HopperPlan(1, 64, 4, 0, (64,), (64,), warps=8, programs=2), (80, 104, 32)),
    ],
)
def test_registers_are_all_given_out_and_no_more(plan: HopperPlan, expected: tuple[int, int, int]) -> None:
    assert module.registers(plan) == expected
    at_first, of_groups, of_fetching = expected
    computing = plan.groups * plan.warps // 4
    assert computing * of_groups + of_fetching <= at_first * (computing + 1) <= 512 // plan.programs


@pytest.mark.parametrize("width", module.HOPPER_WIDTHS)
def test_candidates_are_apart_and_hold_a_head(width: int) -> None:
    plans = candidate_plans(width)
    assert len(set(plans)) == len(plans)
    assert module._PLANS[width] in plans
    for plan in plans:
        assert sum(plan.k_parts) >= width
        assert sum(plan.v_parts) >= width
        assert plan.block_n <= 64 or (8 not in plan.v_parts and not plan.ones)
        assert module.registers(plan)[0] >= 24


def heads(n: int, tokens: int, count: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Queries, keys and values, slices of one projection; values have a mean, which shares that miss one would show."""
    wide = torch.randn(n, tokens, 3, count, width, generator=torch.Generator().manual_seed(0))
    wide[:, :, 0] *= 2.0
    wide[:, :, 2] += 1.0
    return wide.to(device, dtype).unbind(2)


def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_hopper", lambda device: True)
    monkeypatch.setattr(module, "HAS_GLUON", True)
    q, k, v = heads(2, 1024, 2, 40, torch.float16, "cpu")
    assert fits(q, k, v)
    assert fits(q[:, :700], k, v)  # queries need be no whole blocks
    assert fits(*(each.bfloat16() for each in (q, k, v)))
    assert not fits(*(each.float() for each in (q, k, v)))
    assert not fits(q, k[:, :77], v[:, :77])
    assert not fits(q, k[:, :1000], v[:, :1000])
    assert not fits(q[:, :77], k, v)
    assert not fits(q[:0], k[:0], v[:0])
    assert not fits(*(each[..., :32] for each in (q, k, v)))  # a width that it is not made for
    odd = torch.zeros(2, 1024, 2, 42, dtype=torch.float16)
    assert not fits(q, odd[..., :40], v)  # strides that are no pieces of 16 bytes
    even = torch.zeros(2, 1024, 2, 48, dtype=torch.float16)
    assert fits(q, even[..., :40], v)
    assert not fits(q, even[..., 1:41], v)  # a beginning that is none
    assert not fits(q, k[:1].expand(2, -1, -1, -1), v)  # one row for all
    monkeypatch.setattr(module, "_is_hopper", lambda device: False)
    assert not fits(q, k, v)


def is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0) and module.HAS_GLUON


on_hopper = pytest.mark.skipif(not is_hopper(), reason="runs on Hopper alone")
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def assert_close(result: Tensor, q: Tensor, k: Tensor, v: Tensor, polynomial: bool = False) -> None:
    """Each value is off by the rounding of the shares, weighted as they are, and by its own."""
    exact = attention_reference(q.double(), k.double(), v.double())
    weighted = attention_reference(q.double(), k.double(), v.double().abs())
    bound = ROUNDING[result.dtype] * (weighted + exact.abs()) + 2e-6 + 2.0**-12.5 * polynomial * weighted
    assert bool(((result.double() - exact).abs() <= bound).all())


@on_hopper
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("queries", [1024, 700, 513])
@pytest.mark.parametrize("width", module.HOPPER_WIDTHS)
def test_attention_on_hopper(width: int, queries: int, dtype: torch.dtype) -> None:
    q, k, v = heads(2, 1024, 3, width, dtype, "cuda")
    q = q[:, :queries]
    assert fits(q, k, v)
    out = torch.full((2, queries, 3, width), torch.nan, dtype=dtype, device="cuda")
    assert attention_hopper(q, k, v, out=out) is out
    assert_close(out, q, k, v)
    assert torch.equal(attention(q, k, v), out)


@on_hopper
@pytest.mark.parametrize("plan", candidate_plans(40), ids=str)
def test_any_plan_gives_attention(plan: HopperPlan) -> None:
    q, k, v = heads(6, 768, 24, 40, torch.float16, "cuda")  # several turns
    assert_close(attention_hopper(q, k, v, plan=plan), q, k, v, polynomial=plan.polynomial > 0)


@on_hopper
@pytest.mark.parametrize("width", module.HOPPER_WIDTHS)
def test_programs_that_stay_go_through_many_blocks(width: int) -> None:
    """More blocks of queries than multiprocessors: rings go on where the last block left them."""
    q, k, v = heads(5, 1152, 24, width, torch.float16, "cuda")
    together = attention_hopper(q, k, v)
    assert_close(together[4:], q[4:], k[4:], v[4:])
    for row in range(5):
        alone = attention_hopper(q[row : row + 1], k[row : row + 1], v[row : row + 1])
        assert torch.equal(alone[0], together[row])


@on_hopper
@pytest.mark.parametrize("width", module.HOPPER_WIDTHS)
def test_groups_change_no_bit(width: int) -> None:
    q, k, v = heads(1, 1024, 2, width, torch.float16, "cuda")
    plan = module._PLANS[width]
    two = attention_hopper(q, k, v, plan=plan._replace(groups=2))
    for groups in range(3, plan.groups + 1):
        assert torch.equal(attention_hopper(q, k, v, plan=plan._replace(groups=groups)), two)


@on_hopper
@pytest.mark.parametrize("rising", [False, True])
def test_scores_far_apart(rising: bool) -> None:
    """A largest score of 256, in the first block or in the last: most shares vanish, and nothing overflows."""
    q, k, v = heads(1, 1024, 1, 64, torch.float16, "cuda")
    q.fill_(4.0)
    k.copy_(torch.linspace(-8.0, 8.0, 1024, device="cuda").view(1, 1024, 1, 1) * (1 if rising else -1))
    assert_close(attention_hopper(q, k, v), q, k, v)


@on_hopper
def test_what_is_not_a_number_stays_in_its_head_and_query() -> None:
    q, k, v = (each.contiguous() for each in heads(2, 1024, 2, 40, torch.float16, "cuda"))
    clean = attention_hopper(q, k, v)
    q[1, 70, 0, 5] = torch.nan
    result = attention_hopper(q, k, v)
    assert result[1, 70, 0].isnan().all()
    result[1, 70, 0] = clean[1, 70, 0]
    assert torch.equal(result, clean)
    k[0, 1023, 1, 39] = torch.inf
    v[0, 0, 0, 7] = torch.nan
    result = attention_hopper(q, k, v)
    assert result[0, :, 0, 7].isnan().all()
    assert torch.equal(result[0, :, 0, 8:], clean[0, :, 0, 8:])  # the pad beside a head's end is not the next head


@on_hopper
def test_a_graph_repeats_it() -> None:
    q, k, v = heads(1, 1024, 2, 40, torch.float16, "cuda")
    out = torch.full((1, 1024, 2, 40), torch.nan, dtype=torch.float16, device="cuda")
    expected = attention_hopper(q, k, v)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention_hopper(q, k, v, out=out)
    assert out.isnan().all()
    graph.replay()
    assert torch.equal(out, expected)


@on_hopper
def test_elsewhere_the_other_kernel_runs() -> None:
    q, k, v = heads(1, 512, 2, 40, torch.float16, "cuda")
    text = (q, k[:, :77], v[:, :77])
    assert torch.equal(attention(*text), attention_triton(*text))
    with pytest.raises(ValueError, match=r"^out is torch\.float32"):
        attention(q, k, v, out=torch.empty(q.shape, device="cuda"))
