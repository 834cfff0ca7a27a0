"""How group normalisations are cut: runs of groups, forms, and what a picture's programs wait for."""

from __future__ import annotations

import pytest
import torch

from steploom_kernels.group_norm_plans import (
    MAX_WAITING,
    MIN_MULTIPROCESSORS,
    Form,
    Picture,
    Run,
    can_wait,
    candidate_plans,
    constants,
    default_plan,
    full_run,
    narrow_run,
    parts_of_a_piece,
    power_of_two,
)

# Stable Diffusion's UNet for 512 x 512 pixels: side, channels.
UNET = [
    *((64, channels) for channels in (320, 640, 960)),
    *((32, channels) for channels in (320, 640, 960, 1280, 1920)),
    *((16, channels) for channels in (640, 1280, 1920, 2560)),
    *((8, channels) for channels in (1280, 2560)),
]


@pytest.mark.parametrize("groups", [1, 2, 16, 32])
@pytest.mark.parametrize("choose", [full_run, narrow_run])
def test_runs_cover_whole_groups_and_are_aligned(choose: type[Run], groups: int) -> None:
    for channels in range(32, 2561, 32):
        run, a_group = choose(channels, groups), channels // groups
        assert run.groups * a_group <= run.width == power_of_two(run.width)
        if any(count * a_group % 8 == 0 for count in range(1, 256 // a_group + 1)):
            assert run.groups == groups or run.groups * a_group % 8 == 0  # 16 bytes in half precision


@pytest.mark.parametrize("channels", [320, 640, 960, 1280, 1920, 2560])
def test_few_lanes_are_idle_in_stable_diffusion(channels: int) -> None:
    run = full_run(channels, 32)
    assert channels / (-(-32 // run.groups) * run.width) > 0.83


@pytest.mark.parametrize(("side", "channels"), UNET)
def test_no_picture_of_the_unet_is_read_twice(side: int, channels: int) -> None:
    picture = Picture(side * side, channels, 32)
    form = default_plan(picture).form(picture.pixels, may_wait=True)
    assert form is (Form.WHOLE if side == 8 or (side == 16 and channels <= 1280) else Form.WAITING)


@pytest.mark.parametrize(("side", "channels"), [(16, 640), (16, 1280), (8, 1280), (8, 2560)])
def test_three_small_pictures_occupy_the_gpu(side: int, channels: int) -> None:
    run = default_plan(Picture(side * side, channels, 32)).run
    assert 48 <= 3 * -(-32 // run.groups) <= 132


def test_no_more_programs_wait_for_each_other_than_may() -> None:
    large = Picture(128 * 128, 320, 32)
    assert default_plan(large).programs(large.pixels) > MAX_WAITING
    assert default_plan(large).form(large.pixels, may_wait=True) is Form.SPLIT
    assert default_plan(Picture(4096, 320, 32)).programs(4096) == MAX_WAITING
    # with three launches at once there are multiprocessors on which no program waits for one that has not begun
    assert 3 * (MAX_WAITING - 1) < MIN_MULTIPROCESSORS


def test_programs_of_a_cpu_cannot_wait() -> None:
    assert not can_wait(torch.device("cpu"))


@pytest.mark.parametrize("a_group", range(1, 41))
def test_a_piece_knows_how_many_groups_it_is_of(a_group: int) -> None:
    for groups in (1, 3, 4, 8):
        lanes = range(groups * a_group)
        most = max(len({lane // a_group for lane in lanes[start : start + 8]}) for start in range(0, len(lanes), 8))
        assert parts_of_a_piece(Run(groups, power_of_two(len(lanes))), a_group) == most


@pytest.mark.parametrize(("side", "channels"), UNET)
def test_tiles_are_made_of_whole_steps(side: int, channels: int) -> None:
    picture = Picture(side * side, channels, 32)
    plans = candidate_plans(picture)
    assert plans[0] == default_plan(picture)
    assert len(set(plans)) == len(plans) > 1
    for plan in plans:
        assert plan.pixels % plan.step == 0
        assert plan.step * plan.run.width <= plan.num_warps * 32 * 8  # eight values a thread at once


def test_what_measures_may_take_more_than_what_applies() -> None:
    """A picture of the VAE: no more chunks than are quickly joined."""
    picture = Picture(512 * 512, 128, 32)
    plan = default_plan(picture)
    first, second = (
        constants(plan, picture, measures=measures, applies=not measures, silu=False, shifted=False)
        for measures in (True, False)
    )
    assert first["padded_chunks"] == second["padded_chunks"] == 128
    assert first["tiles"] * 128 == plan.programs(picture.pixels) == 2048
