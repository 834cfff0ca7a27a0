"""How a group normalisation is cut into programs: by the picture and the GPU, and never by how many pictures there are.

Channels last, a group of ten channels is twenty bytes in each pixel. Programs therefore take runs of whole groups, as
many as nearly fill a power of two (twelve groups of ten channels are 120 of 128 lanes), so that each pixel is read in
one run that starts at a multiple of 16 bytes. Of these a program holds as many pixels as its registers allow.

A small picture, of which one program can hold a narrow run, takes one launch: narrow, so that few pictures occupy many
multiprocessors. So does a larger one whose run as few programs hold as may wait for each other, where the caller has
counters for them. Others take two launches: the first measures, and the second reads again and normalises.
"""

from __future__ import annotations

import functools
import itertools
from enum import Enum
from typing import NamedTuple

import torch

from steploom_kernels.group_norm_kernels import PIECE
from steploom_kernels.jit import cdiv

# A thread of a warp reads eight values of half precision at once. Held packed, 64 of them are 32 registers.
_THREADS = 32  # of a warp
_REGISTERS = 65536  # of a multiprocessor
# Values: 32 KiB. Of three programs a multiprocessor keeps 96 on their way, and of 8 warps a thread holds 64 values.
_TILE = 16384
_WHOLE_TILE = 16384
_MAX_WIDTH = 256
_FEW_PIXELS = 1024  # up to here more and smaller programs were the faster on an H100
MAX_CHUNKS = 128  # that a program of the second launch joins
MAX_WAITING = 32  # programs: with three launches at once, not on every one of so many multiprocessors:
MIN_MULTIPROCESSORS = 100


class Form(Enum):
    """How a picture is normalised."""

    WHOLE = "whole"  # a program holds all pixels of a run
    WAITING = "waiting"  # one launch, whose programs wait for each other
    SPLIT = "split"  # two launches


class Picture(NamedTuple):
    """What is normalised, but for how many there are."""

    pixels: int
    channels: int
    groups: int
    border: int = 0  # channels of x where another is beside it, else 0


class Run(NamedTuple):
    """Neighbouring groups that a program takes."""

    groups: int
    width: int  # their channels, rounded up to a power of two


class Plan(NamedTuple):
    """How pictures are cut. Any gives the same result up to rounding; one gives the same in every run."""

    run: Run
    pixels: int  # that a program holds, a power of two
    num_warps: int
    max_registers: int = 0  # of a thread, in half precision and where programs wait; 0: the compiler's choice

    @property
    def step(self) -> int:
        """Pixels that all threads together read at once."""
        return min(self.pixels, max(1, self.num_warps * _THREADS * PIECE // self.run.width))

    def programs(self, pixels: int) -> int:
        """That hold a run of a picture."""
        return cdiv(pixels, self.pixels)

    def form(self, pixels: int, may_wait: bool) -> Form:
        """Of a picture of so many pixels; whether there are counters, and a GPU on which programs may wait."""
        if self.programs(pixels) == 1:
            return Form.WHOLE
        return Form.WAITING if may_wait and self.programs(pixels) <= MAX_WAITING else Form.SPLIT

    def tiles(self, pixels: int) -> int:
        """That a program of the first of two launches takes, a power of two."""
        return power_of_two(cdiv(self.programs(pixels), MAX_CHUNKS))

    def registers(self, form: Form, value_bytes: int) -> int:
        """Of a thread at most, 0 for the compiler's choice: so that three programs share a multiprocessor."""
        return self.max_registers * value_bytes // 2 if form is Form.WAITING else 0


def default_plan(picture: Picture) -> Plan:
    """The plan where none is given."""
    narrow, padded = narrow_run(picture.channels, picture.groups), power_of_two(picture.pixels)
    if padded * narrow.width <= _WHOLE_TILE:
        return Plan(narrow, padded, _whole_warps(padded * narrow.width))
    run = full_run(picture.channels, picture.groups)
    if picture.pixels <= _FEW_PIXELS:
        return Plan(run, max(1, _TILE // 2 // run.width), num_warps=4, max_registers=80)
    return Plan(run, max(1, _TILE // run.width), num_warps=8, max_registers=80)


def candidate_plans(picture: Picture) -> list[Plan]:
    """The default first, then others that may be faster for pictures in half precision, in as few launches."""
    usual, pixels = default_plan(picture), picture.pixels
    plans, most_programs = [usual], max(MAX_WAITING, usual.programs(pixels))
    runs = dict.fromkeys([usual.run, full_run(picture.channels, picture.groups)])
    for run, tile, num_warps in itertools.product(runs, (8192, 16384, 32768), (4, 8, 16)):
        plan = Plan(run, min(power_of_two(pixels), max(1, tile // run.width)), num_warps)
        held = plan.pixels * run.width // (num_warps * _THREADS)  # values of a thread
        if 16 <= held <= 128 and plan.programs(pixels) <= most_programs:
            limits = _limits(num_warps, held) if plan.programs(pixels) > 1 else []
            plans += [plan._replace(max_registers=registers) for registers in (0, *limits)]
    return list(dict.fromkeys(plans))


def _limits(num_warps: int, held: int) -> list[int]:
    """Registers of a thread that let several programs share a multiprocessor: for what is held and what is done."""
    shares = (_REGISTERS // (programs * num_warps * _THREADS) // 8 * 8 for programs in range(2, 9))
    return [registers for registers in shares if max(56, held // 2 + 32) <= registers <= held // 2 + 72]


def _whole_warps(tile: int) -> int:
    """So many that a thread holds 32 values or fewer: little is done at once, so it shall be done soon."""
    return min(16, max(4, tile // (32 * _THREADS)))


@functools.cache
def can_wait(device: torch.device) -> bool:
    """Whether programs on a device may wait for each other: see `group_norm_kernels`. A CPU runs them one by one."""
    if device.type != "cuda":
        return False
    return bool(torch.cuda.get_device_properties(device).multi_processor_count >= MIN_MULTIPROCESSORS)


def full_run(channels: int, groups: int) -> Run:
    """The run that leaves the fewest lanes idle, of those that start at multiples of 16 bytes if there are any."""
    a_group = channels // groups

    def merit(run: Run) -> tuple[bool, float, bool, int]:
        lanes = cdiv(groups, run.groups) * run.width
        return _is_aligned(run.groups, a_group, groups), channels / lanes, run.width <= 128, run.width

    return max(_runs(channels, groups), key=merit)


def narrow_run(channels: int, groups: int) -> Run:
    """The narrowest run, of those that start at multiples of 16 bytes if there are any."""
    return next(iter([*_aligned_runs(channels, groups), *_runs(channels, groups)]))


def _aligned_runs(channels: int, groups: int) -> list[Run]:
    return [run for run in _runs(channels, groups) if _is_aligned(run.groups, channels // groups, groups)]


def _runs(channels: int, groups: int) -> list[Run]:
    """For each width the longest run; the narrowest first."""
    a_group = channels // groups
    widths = [max(32, power_of_two(a_group))]
    while widths[-1] < _MAX_WIDTH:
        widths.append(2 * widths[-1])
    return [_longest(width, a_group, groups) for width in widths]


def _longest(width: int, a_group: int, groups: int) -> Run:
    """As many groups as fit, or as fit and keep every run aligned, if any do."""
    most = min(groups, width // a_group)
    aligned = (count for count in range(most, 0, -1) if _is_aligned(count, a_group, groups))
    return Run(next(aligned, most), width)


def _is_aligned(count: int, a_group: int, groups: int) -> bool:
    """Whether runs of so many groups all start at multiples of 16 bytes in half precision: the only one, or by size."""
    return count == groups or count * a_group % PIECE == 0


def parts_of_a_piece(run: Run, a_group: int) -> int:
    """Groups that a piece of 8 lanes is of, at most."""
    lanes = run.groups * a_group
    return max((min(start + PIECE, lanes) - 1) // a_group - start // a_group + 1 for start in range(0, lanes, PIECE))


def power_of_two(count: int) -> int:
    """The least that is not less."""
    return 1 << (count - 1).bit_length()


def constants(
    plan: Plan, picture: Picture, *, measures: bool, applies: bool, silu: bool, shifted: bool
) -> dict[str, int]:
    """The kernel's constants, in its order, for one launch of all or of two."""
    run, pixels = plan.run, picture.pixels
    tiles = 1 if measures and applies else plan.tiles(pixels)
    return {
        **picture._asdict(),
        "run": run.groups,
        "padded_run": power_of_two(run.groups),
        "width": run.width,
        "parts": parts_of_a_piece(run, picture.channels // picture.groups),
        "step_pixels": plan.step,
        "steps": plan.pixels // plan.step,
        "tiles": tiles,
        "padded_chunks": power_of_two(cdiv(pixels, plan.pixels * tiles)),
        "measures": measures,
        "applies": applies,
        "silu": silu,
        "shifted": shifted,
    }
