"""The renderer draws the same picture for the same scene, and an edit changes what it names and nothing else."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from steploom_distill import palette, samples
from steploom_distill.data import HELD_OUT_SEED, chunk_seed, held_out_scenes, sample_pairs
from steploom_distill.edits import EDIT_INDEX, EDITS, FAMILY_WEIGHTS, Edit, applicable, apply_edit, apply_edits
from steploom_distill.palette import Hat, Style, Subject
from steploom_distill.renderer import render
from steploom_distill.scene import ATTRIBUTES, HUMAN_DEFAULTS, Scene, sample_scenes, visible

SIZE = 48  # small, for speed; nothing in the renderer depends on it


def differing(a: Scene, b: Scene) -> set[str]:
    return {f.name for f in fields(Scene) if not torch.equal(getattr(a, f.name), getattr(b, f.name))}


def named(name: str) -> Edit:
    return EDITS[EDIT_INDEX[name]]


def test_the_same_seed_draws_the_same_pictures() -> None:
    first, second = sample_scenes(24, seed=5), sample_scenes(24, seed=5)
    assert differing(first, second) == set()
    assert torch.equal(render(first, SIZE), render(second, SIZE))
    assert differing(first, sample_scenes(24, seed=6)) >= {"pose", "skin_rgb"}


def test_a_picture_does_not_depend_on_its_batch() -> None:
    scene = sample_scenes(24, seed=8)
    together = render(scene, SIZE)
    for row in range(0, len(scene), 5):
        torch.testing.assert_close(together[row], render(scene[row : row + 1], SIZE)[0], rtol=0, atol=1e-6)


def test_pictures_are_finite_and_in_range() -> None:
    pictures = render(sample_scenes(64, seed=1), SIZE)
    assert pictures.shape == (64, 3, SIZE, SIZE)
    assert bool(pictures.isfinite().all())
    assert float(pictures.min()) >= 0
    assert float(pictures.max()) <= 1


def test_every_value_of_every_attribute_is_drawn_and_differs_from_the_others() -> None:
    for name, count in ATTRIBUTES.items():
        scenes = [samples.posed({"subject": Subject.PERSON, name: value}) for value in range(count)]
        pictures = [render(scene, SIZE) for scene in scenes]
        for i, one in enumerate(pictures):
            for other in pictures[i + 1 :]:
                assert float((one - other).abs().max()) > 0.02, name


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_an_edit_sets_its_attributes_and_no_others(edit: Edit) -> None:
    before = held_out_scenes(edit, 4, seed=3)
    assert len(before) == 4
    after = apply_edit(edit, before)
    for name, value in edit.sets.items():
        assert getattr(after, name).tolist() == [value] * 4
    colours = {f"{name}_rgb" for name in edit.sets} | ({"hat_rgb"} if "hat" in edit.sets else set())
    assert differing(before, after) <= set(edit.sets) | colours
    assert differing(after, apply_edit(edit, after)) == set()
    changed = (render(after, SIZE) - render(before, SIZE)).abs().amax(dim=(1, 2, 3))
    assert bool((changed > 0.01).all())


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("flower-on", slice(16, 64), slice(70, 108)),
        ("eyes-close", slice(50, 78), slice(34, 96)),
        ("laugh", slice(74, 92), slice(52, 76)),
        ("shirt-red", slice(82, 128), slice(0, 128)),
        ("sunglasses-on", slice(50, 80), slice(30, 98)),
    ],
)
def test_an_edit_changes_pixels_only_where_it_should(name: str, rows: slice, columns: slice) -> None:
    scene = samples.portrait()
    difference = (render(apply_edit(named(name), scene)) - render(scene)).abs().amax(dim=1)[0]
    assert float(difference[rows, columns].max()) > 0.1
    difference[rows, columns] = 0
    assert float(difference.max()) == 0


def test_edits_of_a_batch_are_each_row_s_own() -> None:
    scene = samples.portrait()
    pair = Scene(**{f.name: getattr(scene, f.name).repeat_interleave(2, 0) for f in fields(Scene)})
    after = apply_edits(pair, torch.tensor([EDIT_INDEX["hair-blond"], EDIT_INDEX["western"]]))
    assert after.hair.tolist() == [palette.index(palette.HAIRS, "blond"), int(scene.hair)]
    assert after.style.tolist() == [Style.PLAIN, Style.WESTERN]
    assert after.hat.tolist() == [Hat.NONE, Hat.COWBOY]


def test_the_truth_does_not_depend_on_what_the_picture_hides() -> None:
    cat = samples.cat()
    other = replace(cat, **{name: getattr(cat, name) * 0 + 2 for name in HUMAN_DEFAULTS})
    assert torch.equal(render(cat, SIZE), render(other, SIZE))
    humanise = named("humanise")
    assert torch.equal(render(apply_edit(humanise, cat), SIZE), render(apply_edit(humanise, other), SIZE))


def test_chosen_edits_apply_and_every_edit_is_chosen() -> None:
    before, after, chosen = sample_pairs(3000, seed=11)
    for number, edit in enumerate(EDITS):
        rows = (chosen == number).nonzero()[:, 0]
        assert len(rows) > 0, edit.name
        assert bool(applicable(edit, before[rows]).all())
    assert float((render(after[:64], SIZE) - render(before[:64], SIZE)).abs().amax(dim=(1, 2, 3)).min()) > 0.01
    assert sum(FAMILY_WEIGHTS.values()) == pytest.approx(1)


def test_no_op_pairs_change_nothing() -> None:
    before, after, _ = sample_pairs(50, seed=2, no_op=1.0)
    assert differing(before, after) == set()


def test_training_never_sees_a_held_out_seed() -> None:
    assert chunk_seed(2**19, 2**40 - 1) < HELD_OUT_SEED


def test_a_western_hides_colours_and_sunglasses_hide_eyes() -> None:
    shown = visible(apply_edit(named("western"), samples.portrait()))
    assert not bool(shown["hair"])
    assert bool(shown["hat"])
    shown = visible(apply_edit(named("sunglasses-on"), samples.portrait()))
    assert not bool(shown["iris"])
    assert not bool(shown["eyes_open"])
