"""The edits the model learns: for each, when it makes sense and which attributes it sets.

An edit is exact: the picture after it is the render of the same scene with these attributes changed, so the truth
follows from the picture before and the instruction alone. What the picture before cannot show (the eyes behind
sunglasses, the skin a cat would have as a person) is set to a fixed value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import palette
from .palette import FIRST_LANDSCAPE, Backdrop, Hat, Mouth, Style, Subject
from .scene import HUMAN_DEFAULTS, Scene


@dataclass(frozen=True)
class Edit:
    """One edit: its name, the family it shares sampling weight and phrases with, and what it does."""

    name: str
    family: str
    sets: Mapping[str, int]  # attribute -> value after
    needs: Mapping[str, int] = field(default_factory=dict)  # attribute -> value before
    lacks: Mapping[str, int] = field(default_factory=dict)  # attribute -> value it must not have before
    checks: tuple[str, ...] = ()  # attributes that tell success; empty: all of `sets`
    styles: tuple[Style, ...] = (Style.PLAIN, Style.ILLUSTRATION)  # styles of pictures it is defined for

    @property
    def judged(self) -> tuple[str, ...]:
        return self.checks or tuple(self.sets)


BROWN_EYES = palette.index(palette.IRISES, "brown")
HAIR_COLOURS = tuple(palette.HAIRS)
SHIRT_COLOURS = ("red", "blue", "green", "yellow", "black", "white")
BACKDROP_COLOURS = ("blue", "pink", "green", "yellow", "purple", "white")
ANY_STYLE = tuple(Style)
FAMILY_WEIGHTS = {
    "hair": 0.17,
    "sunglasses": 0.10,
    "eyes": 0.11,
    "hat": 0.10,
    "flower": 0.08,
    "mouth": 0.06,
    "shirt": 0.08,
    "backdrop": 0.06,
    "landscape": 0.06,
    "western": 0.06,
    "illustration": 0.06,
    "humanise": 0.06,
}


def _accessories() -> list[Edit]:
    return [
        Edit("sunglasses-on", "sunglasses", {"sunglasses": 1}, lacks={"sunglasses": 1}, styles=ANY_STYLE),
        Edit(
            "sunglasses-off",
            "sunglasses",
            {"sunglasses": 0, "eyes_open": 1, "iris": BROWN_EYES},
            needs={"sunglasses": 1},
            checks=("sunglasses",),
            styles=ANY_STYLE,
        ),
        Edit("beanie-on", "hat", {"hat": Hat.BEANIE}, lacks={"hat": Hat.BEANIE}),
        Edit("cowboy-hat-on", "hat", {"hat": Hat.COWBOY}, lacks={"hat": Hat.COWBOY}),
        Edit("hat-off", "hat", {"hat": Hat.NONE}, lacks={"hat": Hat.NONE}),
        Edit("flower-on", "flower", {"flower": 1}, lacks={"flower": 1}, styles=ANY_STYLE),
        Edit("flower-off", "flower", {"flower": 0}, needs={"flower": 1}, styles=ANY_STYLE),
    ]


def _faces() -> list[Edit]:
    bare = {"sunglasses": 0}
    return [
        Edit("eyes-close", "eyes", {"eyes_open": 0}, needs=bare | {"eyes_open": 1}, styles=ANY_STYLE),
        Edit(
            "eyes-open",
            "eyes",
            {"eyes_open": 1, "iris": BROWN_EYES},
            needs=bare | {"eyes_open": 0},
            checks=("eyes_open",),
            styles=ANY_STYLE,
        ),
        Edit("laugh", "mouth", {"mouth": Mouth.LAUGH}, lacks={"mouth": Mouth.LAUGH}, styles=ANY_STYLE),
        Edit("serious", "mouth", {"mouth": Mouth.NEUTRAL}, lacks={"mouth": Mouth.NEUTRAL}, styles=ANY_STYLE),
    ]


def _colours() -> list[Edit]:
    hair = [Edit(f"hair-{name}", "hair", {"hair": palette.index(palette.HAIRS, name)}) for name in HAIR_COLOURS]
    shirt = [Edit(f"shirt-{name}", "shirt", {"shirt": palette.index(palette.SHIRTS, name)}) for name in SHIRT_COLOURS]
    solid = [
        Edit(
            f"backdrop-{name}",
            "backdrop",
            {"backdrop": Backdrop.SOLID, "backdrop_colour": palette.index(palette.BACKDROPS, name)},
        )
        for name in BACKDROP_COLOURS
    ]
    return hair + shirt + solid


def _worlds() -> list[Edit]:
    landscapes = [
        Edit(f"at-{kind.name.lower()}", "landscape", {"backdrop": kind}, lacks={"backdrop": kind})
        for kind in Backdrop
        if kind >= FIRST_LANDSCAPE
    ]
    western = {"style": Style.WESTERN, "hat": Hat.COWBOY, "backdrop": Backdrop.DESERT}
    plain = (Style.PLAIN,)
    return [
        *landscapes,
        Edit("western", "western", western, styles=plain),
        Edit("illustration", "illustration", {"style": Style.ILLUSTRATION}, styles=plain),
        Edit(
            "humanise",
            "humanise",
            {"subject": Subject.PERSON} | HUMAN_DEFAULTS,
            needs={"subject": Subject.CAT},
            checks=("subject", "hair"),
        ),
    ]


EDITS: tuple[Edit, ...] = tuple(_accessories() + _faces() + _colours() + _worlds())
EDIT_INDEX = {edit.name: i for i, edit in enumerate(EDITS)}


def applicable(edit: Edit, scene: Scene) -> Tensor:
    """In which scenes (``[n]`` bool) the edit is defined and changes something."""
    ok = torch.isin(scene.style, torch.tensor([int(style) for style in edit.styles], device=scene.device))
    for name, value in edit.needs.items():
        ok = ok & (getattr(scene, name) == value)
    for name, value in edit.lacks.items():
        ok = ok & (getattr(scene, name) != value)
    return ok


def apply_edit(edit: Edit, scene: Scene, rows: Tensor | None = None) -> Scene:
    """The scenes after the edit, all of them or those that ``rows`` (``[n]`` bool) marks."""
    mask = torch.ones_like(scene.subject, dtype=torch.bool) if rows is None else rows
    return scene.where(mask, {name: int(value) for name, value in edit.sets.items()})


def apply_edits(scene: Scene, chosen: Tensor) -> Scene:
    """Apply to each scene the edit whose index into `EDITS` stands in ``chosen`` (``[n]`` int64)."""
    for i, edit in enumerate(EDITS):
        scene = apply_edit(edit, scene, chosen == i)
    return scene


def choose_edits(scene: Scene, seed: int) -> Tensor:
    """A random edit for each scene (``[n]`` int64 on the CPU), by family weight among those that apply."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {family: sum(edit.family == family for edit in EDITS) for family in FAMILY_WEIGHTS}
    weights = torch.stack(
        [applicable(edit, scene).float() * FAMILY_WEIGHTS[edit.family] / sizes[edit.family] for edit in EDITS], dim=1
    )
    family = torch.tensor([list(FAMILY_WEIGHTS).index(edit.family) for edit in EDITS])
    open_weight = torch.zeros(len(scene), len(FAMILY_WEIGHTS)).index_add_(1, family, weights.cpu())
    target = torch.tensor(list(FAMILY_WEIGHTS.values()))
    share = torch.where(open_weight > 0, target / open_weight.clamp_min(1e-9), 0.0)
    return torch.multinomial(weights.cpu() * share[:, family], 1, generator=generator)[:, 0]
