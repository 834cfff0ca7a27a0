"""Guidance and sampler step of all jobs of a tick at once, written back to their slots."""

from __future__ import annotations

from torch import Tensor

# Columns of a coefficient table; see `guidance_step`.
X, PREDICTION, NOISE, HISTORY, X0_X, X0_PREDICTION = range(6)
NUM_COEFFICIENTS = 6


def guidance_step(
    prediction: Tensor,
    job_rows: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    slots: Tensor,
    latents: Tensor,
    history: Tensor,
    noise: Tensor | None = None,
) -> None:
    """One step of each job, in place: with g the weighted sum of a job's branches (arXiv 2211.09800, equation 3)

        latents <- a * latents + b * g + c * noise + h * history
        history <- p * latents + q * g          (of the old latents: the estimate of the finished picture)

    Args:
        prediction: [rows, channels, h, w], the UNet's output.
        job_rows: int64 [jobs, 3], the row of each branch; a branch that was not computed names any row of its own job.
        weights: [jobs, 3], zero for a branch that was not computed.
        coefficients: [jobs, 6], the columns a, b, c, h, p, q.
        slots: int64 [jobs], each at most once.
        latents: [slots, channels, h, w], changed.
        history: [slots, channels, h, w], changed.
        noise: [jobs, channels, h, w], or None where every c is zero.
    """
    branches = prediction.to(latents.dtype)[job_rows]  # [jobs, 3, channels, h, w]
    guided = sum(_column(weights, branch) * branches[:, branch] for branch in range(weights.shape[1]))
    old = latents[slots]
    new = _column(coefficients, X) * old + _column(coefficients, PREDICTION) * guided
    new += _column(coefficients, HISTORY) * history[slots]
    if noise is not None:
        new += _column(coefficients, NOISE) * noise
    history[slots] = _column(coefficients, X0_X) * old + _column(coefficients, X0_PREDICTION) * guided
    latents[slots] = new


def _column(table: Tensor, index: int) -> Tensor:
    return table[:, index, None, None, None]
