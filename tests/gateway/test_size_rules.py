"""Size rules: into the model's size and back."""

from __future__ import annotations

import numpy as np
import pytest
from gateway_house import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from steploom_common.arena import Pixels
from steploom_gateway.resize import Frame, SizeRule, fit, preview, restore

SIDES = st.integers(1, 90)


def fitted(pixels: Pixels, model: tuple[int, int], rule: SizeRule) -> tuple[Pixels, Frame]:
    return fit(Image.fromarray(pixels), pixels.shape[:2], model, rule)


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(SizeRule))
def test_any_size_becomes_the_models_and_comes_back(
    height: int, width: int, model_height: int, model_width: int, rule: SizeRule
) -> None:
    model = (model_height, model_width)
    pixels, frame = fitted(np.full((height, width, 3), 90, np.uint8), model, rule)
    assert pixels.shape == (*model, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 90).all()
    answer = restore(pixels, frame)
    assert answer.shape == (frame.out_height, frame.out_width, 3)
    assert (answer == 90).all()
    small = preview(pixels[::2, ::2], model, frame, 32)
    assert max(small.shape[:2]) <= 32
    assert (small == 90).all()
    if rule is SizeRule.CROP:
        assert answer.shape[:2] == model
    if rule is SizeRule.STRETCH:
        assert answer.shape[:2] == (height, width)
    if rule is SizeRule.PAD:
        assert answer.shape[0] == model[0] or answer.shape[1] == model[1]


@pytest.mark.parametrize("rule", SizeRule)
def test_the_models_own_size_is_left_alone(rule: SizeRule) -> None:
    sent = picture(48, 48)
    pixels, frame = fitted(sent, (48, 48), rule)
    assert np.array_equal(pixels, sent)
    assert np.array_equal(restore(pixels, frame), sent)


def marked(height: int, width: int) -> Pixels:
    """Black, with a white square in the middle."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4] = 255
    return pixels


def test_crop_keeps_the_centre() -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200
    assert (fitted(wide, (32, 32), SizeRule.CROP)[0] == 200).all()
    tall = np.zeros((96, 32, 3), np.uint8)
    tall[32:64] = 200
    assert (fitted(tall, (32, 32), SizeRule.CROP)[0] == 200).all()


def test_pad_repeats_the_edge_and_is_cut_off_again() -> None:
    sent = np.zeros((16, 32, 3), np.uint8)
    sent[0], sent[-1] = 10, 20
    pixels, frame = fitted(sent, (32, 32), SizeRule.PAD)
    assert (pixels[:9] == 10).all()
    assert (pixels[-9:] == 20).all()
    assert np.array_equal(restore(pixels, frame), sent)


@pytest.mark.parametrize("rule", SizeRule)
@pytest.mark.parametrize("size", [(64, 40), (40, 64), (63, 41)])
def test_the_middle_stays_in_the_middle(rule: SizeRule, size: tuple[int, int]) -> None:
    pixels, frame = fitted(marked(*size), (32, 32), rule)
    answer = restore(pixels, frame)
    rows, columns = np.nonzero(answer[:, :, 0] > 127)
    assert rows.mean() == pytest.approx((answer.shape[0] - 1) / 2, abs=1)
    assert columns.mean() == pytest.approx((answer.shape[1] - 1) / 2, abs=1)


@pytest.mark.parametrize("size", [(1, 4096), (4096, 1), (1, 1)])
@pytest.mark.parametrize("rule", SizeRule)
def test_extreme_shapes(size: tuple[int, int], rule: SizeRule) -> None:
    pixels, frame = fitted(np.full((*size, 3), 5, np.uint8), (128, 128), rule)
    assert (restore(pixels, frame) == 5).all()


def test_a_reduced_picture_still_answers_at_the_size_that_was_sent() -> None:
    reduced = Image.fromarray(picture(50, 30))
    _, frame = fit(reduced, (400, 240), (32, 32), SizeRule.STRETCH)
    assert (frame.out_height, frame.out_width) == (400, 240)


def test_previews_are_small_and_of_the_answers_shape() -> None:
    pixels, frame = fitted(picture(100, 200), (64, 64), SizeRule.STRETCH)
    assert preview(pixels, (64, 64), frame, 50).shape == (25, 50, 3)
    pixels, frame = fitted(picture(100, 200), (64, 64), SizeRule.PAD)
    assert preview(pixels[::4, ::4], (64, 64), frame, 500).shape == (8, 16, 3)
