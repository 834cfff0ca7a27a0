"""Group normalisation of channels-last pictures, of one or two side by side, with a shift before and SiLU after.

A picture is read once and written once where that can be: by programs that each hold a part of it and wait for each
other (`group_norm_kernels`, `group_norm_plans`). For that the caller gives counters, which launches at the same time
must not share. Without them, and where a picture or the GPU forbids it, the normalisation is a second launch, which
reads the picture again. Neither form nor parts depend on the number of pictures: a picture's result is the same in any
batch, bit for bit.

The time embedding of a resnet costs no pass: its addition moves the means, and what the means are taken off is x
without it. Two pictures side by side are normalised as their concatenation would be, which is never made: each lane
reads the one that its channel is of. As the border is a multiple of 16 bytes, no piece of 16 bytes is of both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steploom_kernels.checks import (
    NETWORK_TYPES,
    require_array,
    require_channels_last,
    require_contiguous,
    require_dtype,
    require_shape,
)
from steploom_kernels.elementwise import output_like
from steploom_kernels.group_norm_kernels import COUNTER_GAP, PIECE, group_norm_kernel
from steploom_kernels.group_norm_plans import Form, Picture, Plan, can_wait, constants, default_plan
from steploom_kernels.jit import Variant, cdiv, runs_on_triton
from steploom_kernels.silu import silu_reference

MAX_GROUP_CHANNELS = 4096
MAX_ROWS = 65535  # the third side of CUDA's grid
_COUNTERS = 512  # of pictures and runs in one launch; what has more takes several


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    silu: bool = False,
    shift: Tensor | None = None,
    beside: Tensor | None = None,
    counters: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Normalised over pixels and the channels of a group, then times weight plus bias (arXiv 1803.08494, equation 1).

    Args:
        x: [n, c, h, w] channels last in memory, or [n, tokens, c] contiguous; computed in float32. With `beside` c is,
            for the other arguments and the result, the sum of both.
        weight: [c], contiguous.
        bias: [c], contiguous.
        groups: into how many the channels are cut.
        eps: added to the variance.
        silu: apply SiLU to the result.
        shift: [n, c], added to every pixel of x before anything else, and not rounded; None for nothing. Its rows may
            be any number of values apart: the same one again (0, as `expand` makes them), or parts of longer rows.
        beside: like x, but for the number of channels, which come after those of x; groups may span the border. The
            channels of x are then a multiple of 8. None for nothing.
        counters: of `new_counters`; calls that may run at the same time need their own each. None: large pictures take
            two launches.
        out: like x, with all channels; may be x itself where nothing is beside it. None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(x):
        return group_norm_triton(
            x, weight, bias, groups, eps=eps, silu=silu, shift=shift, beside=beside, counters=counters, out=out
        )
    values = group_norm_reference(x, weight, bias, groups, eps=eps, silu=silu, shift=shift, beside=beside)
    return values if out is None else out.copy_(values)


def new_counters(device: torch.device) -> Tensor:
    """By which the programs of one launch wait for each other: 16 KiB that every call leaves fit for the next one."""
    return torch.zeros(_COUNTERS, COUNTER_GAP, dtype=torch.int32, device=device)


def group_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    silu: bool = False,
    shift: Tensor | None = None,
    beside: Tensor | None = None,
) -> Tensor:
    """`group_norm` in plain torch; float64 is computed in float64."""
    if beside is not None:
        x = torch.cat([x, beside], dim=2 if x.dim() == 3 else 1)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    last = wide if x.dim() == 3 else wide.permute(0, 2, 3, 1)  # [n, pixels..., c]
    values = last.reshape(len(x), -1, groups, last.shape[-1] // groups)
    if shift is not None:
        values = values + shift.to(wide.dtype).view(len(x), 1, groups, -1)
    centred = values - values.mean(dim=(1, 3), keepdim=True)
    variance = centred.square().mean(dim=(1, 3), keepdim=True)
    values = (centred * torch.rsqrt(variance + eps)).view(last.shape)
    values = values * weight.to(wide.dtype) + bias.to(wide.dtype)
    if silu:
        values = silu_reference(values)
    return (values if x.dim() == 3 else values.permute(0, 3, 1, 2)).to(x.dtype)


def group_norm_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    silu: bool = False,
    shift: Tensor | None = None,
    beside: Tensor | None = None,
    counters: Tensor | None = None,
    out: Tensor | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """`group_norm` as one launch, or as two; by a plan of `candidate_plans`, or by the default one."""
    rows, picture = _check(x, weight, bias, groups, shift, beside, counters)
    out = output_like(x, out) if beside is None else _joined_output(x, picture.channels, out)
    if not out.numel():
        return out
    plan = plan or default_plan(picture)
    at_once = _COUNTERS // cdiv(groups, plan.run.groups)
    form = plan.form(picture.pixels, may_wait=counters is not None and at_once > 0 and can_wait(x.device))
    at_once = at_once if form is Form.WAITING else rows
    for start in range(0, rows, at_once):
        some = slice(start, start + at_once)
        arguments = _Arguments(
            out[some], x[some], _part(beside, some), weight, bias, _part(shift, some), counters, eps, silu
        )
        _launch(form, plan, picture, arguments)
    return out


class _Arguments(NamedTuple):
    out: Tensor
    x: Tensor
    beside: Tensor | None
    weight: Tensor
    bias: Tensor
    shift: Tensor | None
    counters: Tensor | None
    eps: float
    silu: bool


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _launch(form: Form, plan: Plan, picture: Picture, given: _Arguments) -> None:
    rows, registers = len(given.x), plan.registers(form, given.x.element_size())
    options = {"num_warps": plan.num_warps} | ({"maxnreg": registers} if registers else {})
    moments: Tensor | None = None
    for measures, applies in ((True, False), (False, True)) if form is Form.SPLIT else ((True, True),):
        fixed = constants(
            plan, picture, measures=measures, applies=applies,
            silu=given.silu and applies, shifted=given.shift is not None,
        )  # fmt: skip
        if moments is None and form is not Form.WHOLE:
            size = rows, picture.groups, fixed["padded_chunks"], 2
            moments = torch.empty(size, dtype=torch.float32, device=given.x.device)
        programs = cdiv(picture.pixels, plan.pixels * (fixed["tiles"] if measures else 1))
        group_norm_kernel[(programs, cdiv(picture.groups, plan.run.groups), rows)](
            given.out, given.x, given.beside, given.weight, given.bias, given.shift, moments,
            given.counters if form is Form.WAITING else None,
            0 if given.shift is None else given.shift.stride(0), given.eps, **fixed, **options,
        )  # fmt: skip


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    shift: Tensor | None,
    beside: Tensor | None,
    counters: Tensor | None,
) -> tuple[int, Picture]:
    require_dtype("x", x, *NETWORK_TYPES)
    _require_layout("x", x)
    rows, pixels, channels = _sizes(x)
    border = 0
    if beside is not None:
        border, channels = channels, channels + _channels_beside(x, beside)
    if rows > MAX_ROWS or pixels * channels >= 2**31:
        raise ValueError(f"x is {list(x.shape)}, must be at most {MAX_ROWS} pictures of less than 2**31 values")
    if groups < 1 or channels % groups or channels // groups > MAX_GROUP_CHANNELS:
        raise ValueError(f"groups is {groups}, must cut {channels} channels into at most {MAX_GROUP_CHANNELS} each")
    require_array("weight", weight, NETWORK_TYPES, channels)
    require_array("bias", bias, NETWORK_TYPES, channels)
    if shift is not None:
        require_shape("shift", shift, rows, channels)
        require_dtype("shift", shift, *NETWORK_TYPES)
        if channels > 1 and shift.stride(1) != 1:
            raise ValueError(f"shift must hold a row's values side by side, its strides are {shift.stride()}")
    if counters is not None:
        require_array("counters", counters, (torch.int32,), _COUNTERS, COUNTER_GAP)
    return rows, Picture(pixels, channels, groups, border)


def _require_layout(name: str, tensor: Tensor) -> None:
    if tensor.dim() == 3:
        require_contiguous(name, tensor)
    else:
        require_channels_last(name, tensor)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Pictures, pixels and channels."""
    if x.dim() == 3:
        return x.shape[0], x.shape[1], x.shape[2]
    return x.shape[0], x.shape[2] * x.shape[3], x.shape[1]


def _channels_beside(x: Tensor, beside: Tensor) -> int:
    axis = 2 if x.dim() == 3 else 1
    wanted: list[int | None] = list(x.shape)
    wanted[axis] = None
    require_shape("beside", beside, *wanted)
    require_dtype("beside", beside, x.dtype)
    _require_layout("beside", beside)
    if x.shape[axis] % PIECE:
        raise ValueError(f"x has {x.shape[axis]} channels, must be a multiple of {PIECE} where another is beside it")
    return beside.shape[axis]


def _joined_output(x: Tensor, channels: int, out: Tensor | None) -> Tensor:
    shape = (*x.shape[:2], channels) if x.dim() == 3 else (x.shape[0], channels, *x.shape[2:])
    if out is None:
        order = torch.contiguous_format if x.dim() == 3 else torch.channels_last
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)
    require_shape("out", out, *shape)
    require_dtype("out", out, x.dtype)
    _require_layout("out", out)
    return out


class _Stage(NamedTuple):
    """The group normalisations of a network at one size of picture."""

    groups: int
    side: int
    taken: tuple[int, ...]  # channels of what resnets take
    inner: int  # channels after their first convolution, where the time embedding is added
    joined: tuple[tuple[int, int], ...]  # what resnets take beside a skip connection
    is_attended: bool = True  # a transformer normalises the inner channels, too


_STAGES = (
    # Stable Diffusion's UNet for 512 x 512 pixels
    _Stage(32, 64, (320, 640, 960), 320, ((640, 320), (320, 320))),
    _Stage(32, 32, (320, 640, 960, 1280, 1920), 640, ((1280, 640), (640, 640), (640, 320))),
    _Stage(32, 16, (640, 1280, 1920, 2560), 1280, ((1280, 1280), (1280, 640))),
    _Stage(32, 8, (1280, 2560), 1280, ((1280, 1280),)),
    # the embedded model's
    _Stage(16, 32, (64, 128, 160), 64, ((96, 64), (64, 64)), is_attended=False),
    _Stage(16, 16, (64, 96, 160, 256), 96, ((160, 96), (96, 64))),
    _Stage(16, 8, (96, 160, 256, 320), 160, ((160, 160), (160, 96))),
)


class _Normed(NamedTuple):
    """A group normalisation, and what it does besides."""

    channels: int
    border: int = 0
    silu: bool = True
    shifted: bool = False

    @property
    def name(self) -> str:
        channels = f"{self.border}+{self.channels - self.border}" if self.border else str(self.channels)
        return f"{'shift_' * self.shifted}{'silu_' * self.silu}{channels}"


def variants() -> list[Variant]:
    """The compiled forms of the models' shapes in float16, none of whose programs wait for each other.

    Where nothing is added `shift` may be null, where nothing is beside x `beside` may, and `counters` always. What
    measures alone writes nothing but `moments`, [rows, groups, padded_chunks, 2] in float32; what is whole has none.
    """
    found: dict[str, Variant] = {}
    for stage in _STAGES:
        forms = [_Normed(channels) for channels in stage.taken]
        forms += [
            _Normed(sum(pair), border=pair[0], shifted=shifted) for pair in stage.joined for shifted in (False, True)
        ]
        forms += [_Normed(stage.inner, shifted=True), _Normed(stage.inner, silu=False)][: 1 + stage.is_attended]
        for normed in forms:
            found |= {item.name: item for item in _variants(stage, normed)}
    return list(found.values())


def _variants(stage: _Stage, normed: _Normed) -> list[Variant]:
    """What measures is the same with SiLU and without."""
    picture = Picture(stage.side**2, normed.channels, stage.groups, normed.border)
    plan = default_plan(picture)
    if plan.form(picture.pixels, may_wait=False) is Form.WHOLE:
        return [_variant("group_norm", stage, normed, plan, picture, True, True)]
    return [
        _variant("group_moments", stage, normed._replace(silu=False), plan, picture, True, False),
        _variant("group_norm", stage, normed, plan, picture, False, True),
    ]


def _variant(
    name: str, stage: _Stage, normed: _Normed, plan: Plan, picture: Picture, measures: bool, applies: bool
) -> Variant:
    fixed = constants(plan, picture, measures=measures, applies=applies, silu=normed.silu, shifted=normed.shifted)
    pointers = dict.fromkeys(("out", "x", "beside", "weight", "bias", "shift"), "*fp16")
    pointers |= {"moments": "*fp32", "counters": "*i32"}
    return Variant(
        name=f"{name}_{normed.name}x{stage.side}x{stage.side}_of_{stage.groups}_fp16",
        kernel=group_norm_kernel,
        signature=pointers | {"shift_row": "i32", "eps": "fp32"} | dict.fromkeys(fixed, "constexpr"),
        constants=fixed,
        grid=(f"cdiv(pixels, step_pixels * steps{' * tiles' if measures else ''})", "cdiv(groups, run)", "rows"),
        aligned=(*pointers, "shift_row"),
        num_warps=plan.num_warps,
        max_registers=plan.registers(Form.WAITING, 2) if measures and applies and fixed["padded_chunks"] > 1 else 0,
    )
