"""Which branches of the UNet a guided step needs: the one place where rows a step are counted.

InstructPix2Pix (arXiv 2211.09800, equation 3) combines three predictions

    none + w_image * (image - none) + w_text * (full - image)

which is a weighted sum of branches. A branch whose weight is zero is not computed: equal scales, or an image scale of
one, cost two rows, and both scales at one cost a single row.
"""

from __future__ import annotations

from enum import IntEnum


class Branch(IntEnum):
    """What a row is conditioned on."""

    FULL = 0  # instruction and picture
    IMAGE = 1  # picture alone
    NONE = 2  # neither


def branch_weights(guidance_scale: float, image_guidance_scale: float) -> dict[Branch, float]:
    """The branches to compute and the weight of each in the guided prediction; the weights sum to one."""
    weights = {
        Branch.FULL: guidance_scale,
        Branch.IMAGE: image_guidance_scale - guidance_scale,
        Branch.NONE: 1.0 - image_guidance_scale,
    }
    return {branch: weight for branch, weight in weights.items() if weight != 0.0}


def rows_per_step(guidance_scale: float, image_guidance_scale: float) -> int:
    """UNet rows of one denoising step."""
    return len(branch_weights(guidance_scale, image_guidance_scale))
