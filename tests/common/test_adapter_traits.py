"""What an adapter was trained for, and what a step with it costs."""

from __future__ import annotations

import math

import pytest

from steploom_common.adapter import AdapterTraits, rows_with
from steploom_common.settings import ConfigError

FAST = AdapterTraits(4, True, 1.5, 10.0, 1.25, 2.0)


@pytest.mark.parametrize(
    ("steps", "text", "image", "fields"),
    [
        (1, 1.5, 1.25, []),
        (4, 10.0, 2.0, []),
        (5, 10.0, 2.0, ["steps"]),
        (0, 10.0, 2.0, ["steps"]),
        (4, 1.4, 2.0, ["guidance_scale"]),
        (4, 10.1, 1.2, ["guidance_scale", "image_guidance_scale"]),
        (9, math.nan, math.inf, ["steps", "guidance_scale", "image_guidance_scale"]),
    ],
)
def test_requests_are_held_against_each_bound(steps: int, text: float, image: float, fields: list[str]) -> None:
    assert [field for field, _ in FAST.violations("fast", steps, text, image)] == fields


def test_a_violation_says_what_would_be_right() -> None:
    assert FAST.violations("fast", 35, 7.5, 1.5) == [("steps", "is 35, must be 1 to 4 with adapter fast")]


def test_scales_that_are_inputs_cost_no_rows() -> None:
    scales = [(7.5, 1.5), (7.5, 1.0), (1.0, 1.0)]
    assert [rows_with(FAST, *pair) for pair in scales] == [1, 1, 1]
    assert [rows_with(AdapterTraits(), *pair) for pair in scales] == [3, 2, 1]
    assert [rows_with(None, *pair) for pair in scales] == [3, 2, 1]


def test_bounds_that_are_crossed_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_guidance_scale: is 8, must be at most max_guidance_scale, which is 7"):
        AdapterTraits(min_guidance_scale=8.0, max_guidance_scale=7.0)
