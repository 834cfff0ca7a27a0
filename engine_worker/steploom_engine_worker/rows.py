"""Which rows of the UNet a tick has, as the small integers that a device is told before it.

A tick of fewer rows than its bucket is padded: a padded row belongs to no slot, reads no job and changes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from steploom_common.guidance import Branch

PADDING = -1  # in place of a slot
NO_ADAPTER = -1  # in place of an adapter's number

Integers = NDArray[np.int32]
TickRows = tuple[list[int], list[int], list[list[int]]]


class HasRows(Protocol):
    """Knows the branches of jobs by their slots."""

    def rows(self, slots: Sequence[int], /) -> TickRows:
        """See `tick_rows`."""


def tick_rows(branches: Sequence[Sequence[Branch]]) -> TickRows:
    """The UNet rows of a tick, from the branches of each of its jobs.

    Returns:
        The job (index into `branches`) and the branch of each row; and for each job the row of each branch, its first
        row standing for those that are not computed.
    """
    row_jobs: list[int] = []
    row_branches: list[int] = []
    job_rows: list[list[int]] = []
    for job, own in enumerate(branches):
        first = len(row_jobs)
        where = {branch: first + index for index, branch in enumerate(own)}
        job_rows.append([where.get(branch, first) for branch in Branch])
        row_jobs += [job] * len(where)
        row_branches += [int(branch) for branch in where]
    return row_jobs, row_branches, job_rows


def pack_rows(bucket: int, slots: HasRows, jobs: Sequence[int], steps: Sequence[int]) -> Integers:
    """What a denoise tick reads: of each row slot, branch and step; of each job slot, step, and the row of each branch.

    Args:
        bucket: rows, at least those of the jobs.
        slots: whose jobs they are.
        jobs: the slot of each.
        steps: the step of each, from 0.

    Returns:
        int32 [8 * bucket].
    """
    row_jobs, row_branches, job_rows = slots.rows(jobs)
    packed = np.zeros(8 * bucket, np.int32)
    by_row, by_job = packed[: 3 * bucket].reshape(3, bucket), packed[3 * bucket : 5 * bucket].reshape(2, bucket)
    by_row[0], by_job[0] = PADDING, PADDING
    rows, count = len(row_jobs), len(jobs)
    by_row[0, :rows] = [jobs[job] for job in row_jobs]
    by_row[1, :rows] = row_branches
    by_row[2, :rows] = [steps[job] for job in row_jobs]
    by_job[0, :count] = jobs
    by_job[1, :count] = steps
    packed[5 * bucket :].reshape(bucket, 3)[:count] = np.array(job_rows, np.int32).reshape(count, 3)
    return packed
