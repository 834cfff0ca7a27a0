"""A mix of requests as a command line says it: `free=9,pro=1`, and what is asked for in each tier."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import TypeVar

from steploom_batcher.config import TierConfig
from steploom_loadtest.traces import RequestClass

_CLASS = re.compile(r"(?P<tier>[^\s:=,]+)(?::(?P<steps>\d+))?(?:x(?P<side>\d+))?=(?P<weight>[\d.]+)(?P<percent>%?)")
_MAX_DEAL = 10_000  # classes come in deals that hold all of them by their weights
MAX_STEPS = 1000
MAX_SIDE = 8192  # pixels

Value = TypeVar("Value")


class WrongOption(ValueError):
    """What was asked for cannot be; the message begins with the option."""


@dataclass(frozen=True)
class Wishes:
    """What is asked for beside the mix, each as `VALUE` for all tiers or as `free=VALUE,pro=VALUE`; empty: defaults."""

    steps: str = ""  # denoising steps; default: the tier's
    deadline: str = ""  # seconds; default: the tier's
    size: str = ""  # pixels of a side; default: 128
    cancel: str = ""  # share that is cancelled; default: 0
    cancel_within: str = ""  # seconds up to which it is; default: 1
    adapter: str = ""  # by name, or none; default: the tier's


def read_mix(text: str, wishes: Wishes, tiers: Mapping[str, TierConfig]) -> tuple[RequestClass, ...]:
    """The classes of `TIER[:STEPS[xSIDE]]=WEIGHT,…`, where weights are numbers, or percentages that make 100.

    Args:
        text: the mix.
        wishes: for its tiers.
        tiers: those that are known, for what is not said.

    Raises:
        WrongOption: it makes no mix; names the option, what it says and what it must.
    """
    found = [_class(item, text) for item in text.split(",")]
    weights = _weights(found, text)
    names = list(dict.fromkeys(item["tier"] for item in found))
    steps = _by_tier("--steps", wishes.steps, names, _whole(1, MAX_STEPS))
    deadlines = _by_tier("--deadline", wishes.deadline, names, _number(0.0, 86_400.0, above=True))
    sides = _by_tier("--size", wishes.size, names, _whole(1, MAX_SIDE))
    cancels = _by_tier("--cancel", wishes.cancel, names, _number(0.0, 1.0))
    within = _by_tier("--cancel-within", wishes.cancel_within, names, _number(0.0, 86_400.0, above=True))
    adapters = _by_tier("--adapter", wishes.adapter, names, str)
    classes = []
    for item, weight in zip(found, weights, strict=True):
        tier = item["tier"]
        known = tiers.get(tier)
        if known is None and not (item["steps"] or tier in steps):
            raise WrongOption(_unknown(tier, tiers, "--steps"))
        if known is None and tier not in deadlines:
            raise WrongOption(_unknown(tier, tiers, "--deadline"))
        classes.append(
            RequestClass(
                tier,
                _in_class(item["steps"], "steps", MAX_STEPS) or steps.get(tier) or (known.steps if known else 1),
                weight,
                deadline_s=deadlines.get(tier) or (known.deadline_s if known else 1.0),
                cancel_share=cancels.get(tier, 0.0),
                cancel_within_s=within.get(tier, 1.0),
                adapter=adapters.get(tier, ""),
                side=_in_class(item["side"], "size", MAX_SIDE) or sides.get(tier) or 128,
            )
        )
    return tuple(classes)


def read_by_tier(option: str, text: str, tiers: Sequence[str], at_least: int, at_most: int) -> dict[str, int]:
    """Whole numbers as `VALUE` for all tiers or as `free=VALUE,pro=VALUE`; tiers that are not named are left out.

    Raises:
        WrongOption: a value is out of its bounds, or a tier is none of `tiers`.
    """
    return _by_tier(option, text, tiers, _whole(at_least, at_most))


def words_of(mix: Sequence[RequestClass]) -> str:
    """The mix as it could have been asked for, everything said."""
    return ",".join(f"{kind.tier}:{kind.steps}x{kind.side}={kind.weight}" for kind in mix)


def _class(item: str, text: str) -> Mapping[str, str]:
    found = _CLASS.fullmatch(item.strip())
    if found is None:
        raise WrongOption(
            f"--mix: {item!r} of {text!r} must be TIER=WEIGHT, as in free=9,pro=1, or TIER:STEPSxSIDE=WEIGHT"
        )
    return {name: value or "" for name, value in found.groupdict().items()}


def _weights(found: Sequence[Mapping[str, str]], text: str) -> list[int]:
    """As whole numbers with nothing in common."""
    try:
        shares = [Fraction(item["weight"]) for item in found]
    except ValueError:
        raise WrongOption(f"--mix: a weight of {text!r} is no number") from None
    is_percent = [bool(item["percent"]) for item in found]
    if any(is_percent) and not all(is_percent):
        raise WrongOption(f"--mix: {text!r} has weights and percentages: take one kind")
    if all(is_percent) and sum(shares) != 100:
        raise WrongOption(f"--mix: percentages of {text!r} add up to {float(sum(shares)):g}, must make 100")
    if not all(shares):
        raise WrongOption(f"--mix: a weight of {text!r} is 0, must be above; leave that class out")
    whole = lcm(*(share.denominator for share in shares))
    numbers = [int(share * whole) for share in shares]
    weights = [number // gcd(*numbers) for number in numbers]
    if sum(weights) > _MAX_DEAL:
        raise WrongOption(
            f"--mix: weights of {text!r} add up to {sum(weights)} in whole numbers, must be at most {_MAX_DEAL}"
        )
    return weights


def _in_class(text: str, what: str, at_most: int) -> int:
    """0 where it is not said."""
    if text and not 1 <= int(text) <= at_most:
        raise WrongOption(f"--mix: {what} is {text}, must be from 1 to {at_most}")
    return int(text or 0)


def _by_tier(option: str, text: str, names: Sequence[str], read: Callable[[str], Value]) -> dict[str, Value]:
    """What an option says of each tier; tiers that it does not name are left out."""
    if not text:
        return {}
    if "=" not in text:
        return dict.fromkeys(names, _told(option, text, read))
    values = {}
    for item in text.split(","):
        tier, _, value = item.strip().partition("=")
        if tier not in names:
            raise WrongOption(f"{option}: tier {tier!r} is not in the mix; there {_are(names)}")
        values[tier] = _told(option, value, read)
    return values


def _told(option: str, text: str, read: Callable[[str], Value]) -> Value:
    try:
        return read(text)
    except ValueError as error:
        raise WrongOption(f"{option}: is {text!r}, {error}") from None


def _whole(at_least: int, at_most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not at_least <= int(text) <= at_most:
            raise ValueError(f"must be a whole number from {at_least} to {at_most}")
        return int(text)

    return read


def _number(low: float, high: float, above: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        bound = f"must be a number {'above' if above else 'from'} {low:g}{', at most' if above else ' to'} {high:g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(bound) from None
        if not low <= value <= high or (above and value == low):
            raise ValueError(bound)
        return value

    return read


def _unknown(tier: str, tiers: Mapping[str, TierConfig], option: str) -> str:
    known = f"--mix: tier {tier!r} is not in the configuration, where there {_are(list(tiers))}"
    return f"{known}; say {option} {tier}=VALUE, or name the file that has it by --config"


def _are(names: Sequence[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {', '.join(names) or 'none'}"
