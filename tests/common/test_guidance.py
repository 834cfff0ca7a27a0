"""Branches and rows of a guided step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steploom_common.guidance import Branch, branch_weights, rows_per_step

SCALES = st.floats(1, 30, width=32)


@pytest.mark.parametrize(
    ("w_text", "w_image", "rows"),
    [(7.5, 1.5, 3), (7.5, 1.0, 2), (7.5, 7.5, 2), (1.0, 1.5, 3), (1.0, 1.0, 1), (2.0, 2.0, 2)],
)
def test_rows(w_text: float, w_image: float, rows: int) -> None:
    assert rows_per_step(w_text, w_image) == rows


@given(SCALES, SCALES, st.tuples(*[st.floats(-3, 3)] * 3))
def test_the_weighted_sum_is_equation_3(w_text: float, w_image: float, predictions: tuple[float, ...]) -> None:
    full, image, none = predictions
    expected = none + w_image * (image - none) + w_text * (full - image)
    weights = branch_weights(w_text, w_image)
    guided = sum(weight * predictions[branch] for branch, weight in weights.items())
    assert guided == pytest.approx(expected, abs=1e-9)
    assert sum(weights.values()) == pytest.approx(1)
    assert all(weights.values())
    assert len(weights) == rows_per_step(w_text, w_image)


def test_the_instruction_is_never_left_out() -> None:
    assert Branch.FULL in branch_weights(1.0, 1.0)
