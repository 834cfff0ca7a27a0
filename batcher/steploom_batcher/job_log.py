"""What a line of the log that is about a job says of it beside its words."""

from __future__ import annotations

from steploom_batcher.types import JobSpec
from steploom_common.logs import Fields, about, ids_of


def about_job(spec: JobSpec, **fields: str) -> dict[str, Fields]:
    """The `extra` of such a line."""
    return about(tier=spec.tier, **ids_of(spec.job_id, spec.traceparent), **fields)
