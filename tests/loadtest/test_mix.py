"""A mix in words becomes classes of requests; what does not add up is told by the option that says it."""

from __future__ import annotations

import pytest

from steploom_batcher.config import default_tiers
from steploom_loadtest.mix import Wishes, WrongOption, read_mix, words_of
from steploom_loadtest.traces import RequestClass

TIERS = default_tiers()


def test_weights_and_the_tiers_own_defaults() -> None:
    assert read_mix("free=9,pro=1", Wishes(), TIERS) == (
        RequestClass("free", 3, 9, deadline_s=20.0, adapter=""),
        RequestClass("pro", 35, 1, deadline_s=60.0, adapter=""),
    )


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("free=90%,pro=10%", [9, 1]),
        ("free=0.9,pro=0.1", [9, 1]),
        ("free=12.5%,pro=87.5%", [1, 7]),
        ("free=18,pro=2", [9, 1]),
        (" free=1 , pro=1", [1, 1]),
        ("free=5", [1]),
    ],
)
def test_weights_are_shares(text: str, weights: list[int]) -> None:
    assert [kind.weight for kind in read_mix(text, Wishes(), TIERS)] == weights


def test_steps_and_size_of_a_class_win_over_those_of_its_tier() -> None:
    mix = read_mix("free:2=1,free:4x512=2,pro=1", Wishes(steps="free=3,pro=20", size="64"), TIERS)
    assert [(kind.tier, kind.steps, kind.side, kind.weight) for kind in mix] == [
        ("free", 2, 64, 1),
        ("free", 4, 512, 2),
        ("pro", 20, 64, 1),
    ]
    assert words_of(mix) == "free:2x64=1,free:4x512=2,pro:20x64=1"
    assert read_mix(words_of(mix), Wishes(), TIERS) == mix


def test_what_is_said_of_tiers() -> None:
    wishes = Wishes(deadline="free=2,pro=10.5", cancel="pro=0.25", cancel_within="3", adapter="free=few-step")
    free, pro = read_mix("free=9,pro=1", wishes, TIERS)
    assert (free.deadline_s, free.cancel_share, free.cancel_within_s, free.adapter) == (2.0, 0.0, 3.0, "few-step")
    assert (pro.deadline_s, pro.cancel_share, pro.cancel_within_s, pro.adapter) == (10.5, 0.25, 3.0, "")


def test_a_tier_that_is_not_configured_must_be_told_of() -> None:
    assert read_mix("gold=1", Wishes(steps="7", deadline="5"), TIERS) == (
        RequestClass("gold", 7, 1, deadline_s=5.0, adapter=""),
    )


@pytest.mark.parametrize(
    ("text", "wishes", "words"),
    [
        ("", Wishes(), "--mix: '' of '' must be TIER=WEIGHT"),
        ("free", Wishes(), "--mix: 'free' of 'free' must be TIER=WEIGHT, as in free=9,pro=1"),
        ("free=9,", Wishes(), "--mix: '' of"),
        ("free=1.2.3", Wishes(), "is no number"),
        ("free=90%,pro=20%", Wishes(), "add up to 110, must make 100"),
        ("free=90%,pro=1", Wishes(), "has weights and percentages"),
        ("free=9,pro=0", Wishes(), "a weight of 'free=9,pro=0' is 0"),
        ("free=1,pro=100000", Wishes(), "add up to 100001 in whole numbers, must be at most 10000"),
        ("free:0=1", Wishes(), "--mix: steps is 0, must be from 1 to 1000"),
        ("free:3x9999=1", Wishes(), "--mix: size is 9999, must be from 1 to 8192"),
        ("gold=1", Wishes(), "tier 'gold' is not in the configuration, where there are free, pro; say --steps gold="),
        ("gold:3=1", Wishes(), "say --deadline gold="),
        ("free=1", Wishes(steps="many"), "--steps: is 'many', must be a whole number from 1 to 1000"),
        ("free=1", Wishes(steps="pro=3"), "--steps: tier 'pro' is not in the mix; there is free"),
        ("free=1", Wishes(deadline="0"), "--deadline: is '0', must be a number above 0, at most 86400"),
        ("free=1", Wishes(deadline="nan"), "--deadline: is 'nan'"),
        ("free=1", Wishes(cancel="free=1.5"), "--cancel: is '1.5', must be a number from 0 to 1"),
        ("free=1", Wishes(cancel_within="-1"), "--cancel-within: is '-1'"),
        ("free=1", Wishes(size="0"), "--size: is '0', must be a whole number from 1 to 8192"),
    ],
)
def test_what_makes_no_mix_is_told_by_its_option(text: str, wishes: Wishes, words: str) -> None:
    with pytest.raises(WrongOption) as caught:
        read_mix(text, wishes, TIERS)
    assert words in str(caught.value)
