"""Which adapter draws a job."""

from __future__ import annotations

import pytest

from steploom_batcher.adapters import choose_adapter
from steploom_batcher.config import BatcherConfig
from steploom_common.adapter import AdapterTraits
from steploom_common.errors import InvalidRequest, NotFound

ADAPTERS = {
    "fast": AdapterTraits(max_steps=4, is_guidance_distilled=True, max_guidance_scale=10.0),
    "sketch": AdapterTraits(max_steps=50, max_image_guidance_scale=2.0),
}


def choose(asked: str, of_tier: str, steps: int = 4, text: float = 7.5, image: float = 1.5) -> str:
    return choose_adapter(asked, of_tier, ADAPTERS, steps, text, image)


@pytest.mark.parametrize(
    ("asked", "of_tier", "chosen"),
    [
        ("", "", ""),
        ("", "none", ""),
        ("", "sketch", "sketch"),
        ("", "auto", "fast"),
        ("sketch", "", "sketch"),
        ("sketch", "auto", "sketch"),
        ("sketch", "fast", "sketch"),
        ("sketch", "not there", "sketch"),
        ("none", "fast", ""),
        ("none", "auto", ""),
        ("none", "not there", ""),
    ],
)
def test_the_request_comes_before_the_tier(asked: str, of_tier: str, chosen: str) -> None:
    assert choose(asked, of_tier) == chosen


@pytest.mark.parametrize(
    ("steps", "text", "image", "chosen"),
    [
        (1, 7.5, 1.5, "fast"),
        (4, 10.0, 10.0, "fast"),
        (5, 7.5, 1.5, "sketch"),
        (4, 10.5, 2.0, "sketch"),
        (4, 10.5, 2.5, ""),
        (51, 7.5, 1.5, ""),
    ],
)
def test_auto_takes_the_first_that_was_trained_for_it_and_never_refuses(
    steps: int, text: float, image: float, chosen: str
) -> None:
    assert choose("", "auto", steps, text, image) == chosen


def test_auto_has_nothing_to_choose_from_in_a_model_without_adapters() -> None:
    assert choose_adapter("", "auto", {}, 4, 7.5, 1.5) == ""


@pytest.mark.parametrize(("asked", "of_tier"), [("other", "fast"), ("", "other"), ("auto", "fast")])
def test_a_name_that_is_not_there_lists_those_that_are(asked: str, of_tier: str) -> None:
    with pytest.raises(NotFound, match=f"'{asked or of_tier}' does not exist; there are: fast, sketch"):
        choose(asked, of_tier)


@pytest.mark.parametrize(("asked", "of_tier"), [("fast", ""), ("fast", "auto"), ("", "fast")])
def test_a_name_is_an_order_that_is_refused_out_of_its_bounds(asked: str, of_tier: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(asked, of_tier, steps=5, text=10.5)
    assert [violation.field for violation in caught.value.violations] == ["steps", "guidance_scale"]


def test_the_free_tier_takes_what_fits_and_the_pro_tier_none() -> None:
    assert {name: tier.adapter for name, tier in BatcherConfig().tiers.items()} == {"free": "auto", "pro": ""}
