"""Which adapter draws a job: the one that its request names, else what its tier says."""

from __future__ import annotations

from collections.abc import Mapping

from steploom_common.adapter import AUTO, NONE, AdapterTraits
from steploom_common.errors import InvalidRequest, NotFound, Violation


def choose_adapter(
    asked: str,
    of_tier: str,
    adapters: Mapping[str, AdapterTraits],
    steps: int,
    guidance_scale: float,
    image_guidance_scale: float,
) -> str:
    """The adapter's name; empty: none.

    A name is an order, held against what the adapter was trained for. `auto` is an offer: the first of the model's
    adapters that was trained for such a request, none where no adapter was.

    Args:
        asked: by the request: a name, or `none`; empty: the tier decides.
        of_tier: a name, or `auto`; empty or `none`: none.
        adapters: the model's, by name.
        steps: after defaults.
        guidance_scale: after defaults.
        image_guidance_scale: after defaults.

    Raises:
        NotFound: the model has no adapter of that name.
        InvalidRequest: the request is out of the named adapter's bounds.
    """

    def violations(name: str) -> list[tuple[str, str]]:
        return adapters[name].violations(name, steps, guidance_scale, image_guidance_scale)

    name = asked or of_tier
    if name in ("", NONE):
        return ""
    if name == AUTO and not asked:
        return next((known for known in adapters if not violations(known)), "")
    if name not in adapters:
        raise NotFound("adapter", name, list(adapters))
    if found := violations(name):
        raise InvalidRequest(*(Violation(field, problem) for field, problem in found))
    return name
