"""What a low-rank adapter was trained for, and which requests lie within that."""

from __future__ import annotations

from dataclasses import dataclass

from steploom_common.guidance import rows_per_step
from steploom_common.settings import ConfigError, check, setting

# The value of a tier's `adapter` that leaves the choice to the model.
AUTO = "auto"
# The value of a request's `adapter` that asks for none, where an empty one asks for the tier's.
NONE = "none"
# Names that no adapter can have.
RESERVED_NAMES = (AUTO, NONE)


@dataclass(frozen=True)
class AdapterTraits:
    """The bounds of one adapter; requests outside of them would get pictures that it never learnt to draw."""

    max_steps: int = setting(1000, "most denoising steps that it was trained for", at_least=1, at_most=1000)
    is_guidance_distilled: bool = setting(
        False, "whether it takes the guidance scales as inputs: a step is one row, without branches"
    )
    min_guidance_scale: float = setting(1.0, "least pull towards the instruction", at_least=1, at_most=30)
    max_guidance_scale: float = setting(30.0, "most pull towards the instruction", at_least=1, at_most=30)
    min_image_guidance_scale: float = setting(1.0, "least pull towards the input picture", at_least=1, at_most=10)
    max_image_guidance_scale: float = setting(10.0, "most pull towards the input picture", at_least=1, at_most=10)

    def __post_init__(self) -> None:
        check(self)
        for name in ("guidance_scale", "image_guidance_scale"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise ConfigError(f"min_{name}", f"is {low:g}, must be at most max_{name}, which is {high:g}")

    def violations(
        self, adapter: str, steps: int, guidance_scale: float, image_guidance_scale: float
    ) -> list[tuple[str, str]]:
        """The fields of a request that the adapter of this name was not trained for, each with what it must be."""
        given = {
            "steps": (steps, 1, self.max_steps),
            "guidance_scale": (guidance_scale, self.min_guidance_scale, self.max_guidance_scale),
            "image_guidance_scale": (
                image_guidance_scale, self.min_image_guidance_scale, self.max_image_guidance_scale
            ),
        }  # fmt: skip
        return [
            (field, f"is {value:g}, must be {low:g} to {high:g} with adapter {adapter}")
            for field, (value, low, high) in given.items()
            if not low <= value <= high
        ]


def rows_with(adapter: AdapterTraits | None, guidance_scale: float, image_guidance_scale: float) -> int:
    """UNet rows of one denoising step with an adapter, or without one."""
    if adapter is not None and adapter.is_guidance_distilled:
        return 1
    return rows_per_step(guidance_scale, image_guidance_scale)
