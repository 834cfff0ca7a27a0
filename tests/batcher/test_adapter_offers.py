"""What is offered of adapters that workers have, by rules alone: no clock, no worker."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steploom_batcher.adapter_offers import AdapterOffers, AdapterState
from steploom_batcher.messages import AdapterVersion
from steploom_common.adapter import AdapterTraits

TRAITS = AdapterTraits()
OWN = AdapterVersion("own", "0", TRAITS)


def late(digest: str) -> AdapterVersion:
    return AdapterVersion("late", digest, TRAITS)


def offers(*workers: str) -> AdapterOffers:
    made = AdapterOffers()
    for worker in workers:
        assert made.worker_up(worker, (OWN,), ()) == []
    return made


def states(made: AdapterOffers) -> dict[str, str]:
    return {item.name: item.state.name for item in made.statuses()}


def test_a_new_adapter_is_offered_when_the_last_worker_has_it() -> None:
    made = offers("a", "b")
    made.begin_load("late")
    made.changed("a", (OWN, late("1")))
    assert list(made.offered) == ["own"]
    assert states(made) == {"own": "READY", "late": "LOADING"}
    made.changed("b", (OWN, late("1")))
    made.end_load("late", "1", "")
    assert made.offered["late"] == late("1")
    assert states(made)["late"] == "READY"
    assert made.obsolete(()) == []


def test_a_new_version_takes_over_when_the_last_worker_has_it() -> None:
    made = offers()
    for worker in "ab":
        made.worker_up(worker, (OWN, late("1")), ())
    made.begin_load("late")
    made.changed("a", (OWN, late("1"), late("2")))
    assert made.offered["late"] == late("1")
    made.changed("b", (OWN, late("1"), late("2")))
    assert made.offered["late"] == late("2")
    assert made.obsolete(()) == []  # the load may yet be undone
    made.end_load("late", "2", "")
    assert made.obsolete([("late", "1")]) == []
    assert made.obsolete([("own", "0")]) == [("a", late("1")), ("b", late("1"))]


def test_a_load_that_fails_leaves_what_was_offered() -> None:
    made = offers()
    made.worker_up("a", (OWN, late("1")), ())
    made.begin_load("late")
    made.end_load("late", "", "broken")
    assert made.offered["late"] == late("1")
    (_, status) = made.statuses()
    assert (status.state, status.reason) == (AdapterState.READY, "the latest load failed: broken")
    made.begin_load("late")
    made.end_load("late", "1", "")
    assert made.statuses()[1].reason == ""


def test_what_was_never_there_leaves_no_trace() -> None:
    made = offers("a")
    made.begin_load("odd")
    made.end_load("odd", "", "")
    assert states(made) == {"own": "READY"}
    assert not made.is_known("odd")


def test_what_is_unloaded_stays_until_its_last_job_has_ended() -> None:
    made = offers("a")
    made.unload("own")
    assert made.offered == {}
    assert states(made) == {"own": "UNLOADING"}
    assert made.obsolete([("own", "gone with a worker")]) == []
    assert made.obsolete([]) == [("a", OWN)]
    made.changed("a", ())
    (status,) = made.statuses()
    assert (status.state, status.reason) == (AdapterState.UNAVAILABLE, "unloaded")
    assert made.worker_up("b", (OWN,), ()) == []
    assert made.offered == {}


@pytest.mark.parametrize("problem", ["", "the file is gone"])
def test_a_worker_that_comes_back_is_told_what_a_call_had_loaded(problem: str) -> None:
    made = offers("a")
    made.changed("a", (OWN, late("1")))
    made.end_load("late", "1", "")
    made.worker_down("a")
    assert list(made.offered) == ["own", "late"]  # jobs wait for it
    assert made.worker_up("a", (OWN,), ()) == ["late"]
    assert made.offered["late"] == late("1")  # its jobs come behind the load
    if not problem:
        made.changed("a", (OWN, late("1")))
    made.restored("a", "late", problem)
    assert list(made.offered) == (["own"] if problem else ["own", "late"])
    assert made.can_run("late") is not bool(problem)
    assert states(made)["late"] == ("UNAVAILABLE" if problem else "READY")


def test_an_unloaded_adapter_comes_back_for_the_jobs_that_have_it() -> None:
    made = offers("a")
    made.changed("a", (OWN, late("1")))
    made.end_load("late", "1", "")
    made.unload("late")
    made.worker_down("a")
    assert made.worker_up("a", (OWN,), {"late"}) == ["late"]
    assert list(made.offered) == ["own"]


def test_workers_that_leave_do_not_count() -> None:
    made = offers("old")
    made.worker_up("new", (OWN, late("1")), ())
    assert list(made.offered) == ["own"]
    assert states(made)["late"] == "UNAVAILABLE"
    made.worker_leaving("old")
    assert list(made.offered) == ["own", "late"]
    made.worker_leaving("new")
    assert list(made.offered) == ["own"]  # until another comes, all that is there


def test_workers_with_different_files_offer_by_name() -> None:
    """As in the midst of a roll-out that starts workers anew."""
    made = offers()
    made.worker_up("a", (late("1"),), ())
    made.worker_up("b", (late("2"),), ())
    assert made.offered["late"] == late("1")
    assert made.statuses()[0].reason == "workers have different versions of it"


@dataclass
class Model:
    """Workers as they are, where each change is whole: what must then be offered can be told at a glance."""

    made: AdapterOffers = field(default_factory=AdapterOffers)
    workers: dict[str, tuple[AdapterVersion, ...]] = field(default_factory=dict)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["up", "down", "load", "unload", "tidy", "use"]), st.sampled_from("ab"), st.sampled_from("12")
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=200)
@given(CHANGES)
def test_whatever_happens_every_worker_has_what_is_offered_and_keeps_what_is_used(
    changes: list[tuple[str, str, str]],
) -> None:
    it, in_use = Model(), set[tuple[str, str]]()
    for kind, worker, digest in changes:
        if kind == "up" and worker not in it.workers:
            it.workers[worker] = (OWN,)
            for name in it.made.worker_up(worker, (OWN,), {name for name, _ in in_use}):
                it.workers[worker] = (OWN, AdapterVersion(name, digest, TRAITS))
                it.made.changed(worker, it.workers[worker])
                it.made.restored(worker, name, "")
        elif kind == "down" and worker in it.workers:
            del it.workers[worker]
            it.made.worker_down(worker)
        elif kind == "load" and it.workers:
            it.made.begin_load("late")
            for name, versions in it.workers.items():
                it.workers[name] = (*(item for item in versions if item != late(digest)), late(digest))
                it.made.changed(name, it.workers[name])
            it.made.end_load("late", digest, "")
            assert it.made.offered["late"] == late(digest)
        elif kind == "unload":
            it.made.unload("late")
            assert "late" not in it.made.offered
        elif kind == "use":
            in_use = {(name, version.digest) for name, version in it.made.offered.items()}
        elif kind == "tidy":
            for name, version in it.made.obsolete(in_use):
                assert (version.name, version.digest) not in in_use
                assert it.made.offered.get(version.name) != version
                it.workers[name] = tuple(item for item in it.workers[name] if item != version)
                it.made.changed(name, it.workers[name])
            assert it.made.obsolete(in_use) == []
        for version in it.made.offered.values():
            assert all(any(item.name == version.name for item in held) for held in it.workers.values())
