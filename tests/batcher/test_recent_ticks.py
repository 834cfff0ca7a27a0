"""The feed of recent ticks: bounded, read from where one has read, with each job's part in every tick."""

from __future__ import annotations

import pytest

from steploom_batcher.messages import TickReport
from steploom_batcher.recent_ticks import Part, RecentTicks
from steploom_batcher.types import Entry, JobSpec, Key, Outcome, Stage, Status, Tick

KEY = Key("fake", (4, 8, 8))


def tick(number: int, stage: Stage = Stage.DENOISE, jobs: str = "a", rows: int = 3) -> Tick:
    entries = tuple(Entry(job, slot, step=2 if stage is Stage.DENOISE else 0) for slot, job in enumerate(jobs))
    return Tick(number, "w", stage, KEY, entries, rows, rows + 1, 0.01)


def done(number: int, status: Status = Status.OK) -> TickReport:
    return TickReport(number, Outcome(status, 0.5), start_unix_s=100.0 + number)


def recent(kept: int = 4, **rows: int) -> RecentTicks:
    made = RecentTicks(kept)
    for job, count in rows.items():
        made.begin(JobSpec(job, KEY, "free", 3, count, 10.0))
    return made


def test_a_reader_goes_on_where_it_was() -> None:
    feed = recent(a=3)
    feed.tick_done("w", tick(1), done(1))
    first, last, lost = feed.since(0)
    assert ([ran.tick.tick_id for ran in first], last, lost) == ([1], 1, 0)
    feed.tick_done("w", tick(2), done(2, Status.FAILED))
    (ran,), last, lost = feed.since(last)
    assert (ran.tick.tick_id, ran.status, ran.start_unix_s, ran.seconds, last, lost) == (
        2,
        Status.FAILED,
        102.0,
        0.5,
        2,
        0,
    )
    assert feed.since(last) == ([], 2, 0)


def test_so_many_are_kept_and_a_slow_reader_hears_what_it_has_lost() -> None:
    feed = recent(a=3)
    for number in range(1, 11):
        feed.tick_done("w", tick(number), done(number))
    ticks, last, lost = feed.since(2)
    assert ([ran.tick.tick_id for ran in ticks], last, lost) == ([7, 8, 9, 10], 10, 4)
    assert [ran.tick.tick_id for ran in feed.since(8)[0]] == [9, 10]
    assert feed.since(8)[2] == 0


def test_a_count_of_a_process_before_this_one_counts_as_none() -> None:
    feed = recent(a=3)
    feed.tick_done("w", tick(1), done(1))
    assert len(feed.since(500)[0]) == 1


def test_each_job_has_its_own_rows() -> None:
    feed = recent(a=3, b=1)
    feed.tick_done("w", tick(1, jobs="ab", rows=4), done(1))
    feed.tick_done("w", tick(2, Stage.DECODE, "ab", rows=2), done(2))
    denoise, decode = feed.since(0)[0]
    assert denoise.parts == (Part("a", 3, 3), Part("b", 1, 3))
    assert decode.parts == (Part("a", 1, 0), Part("b", 1, 0))


@pytest.mark.parametrize(("gone", "parts"), [("b", (3, 1)), ("a", (3, 1)), ("ab", (2, 2))])
def test_jobs_that_have_ended_share_what_the_others_leave(gone: str, parts: tuple[int, int]) -> None:
    feed = recent(a=3, b=1)
    for job in gone:
        feed.end(job)
        feed.end(job)
    feed.tick_done("w", tick(1, jobs="ab", rows=4), done(1))
    assert tuple(part.rows for part in feed.since(0)[0][0].parts) == parts


def test_nothing_is_kept_of_jobs_that_have_ended() -> None:
    feed = recent(a=3)
    feed.end("a")
    assert repr(feed) == "RecentTicks(0 of 0, 0 jobs)"
