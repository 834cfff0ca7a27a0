"""A batch of scenes as tensors of attributes, and how random scenes are drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from . import palette
from .palette import FIRST_LANDSCAPE, Backdrop, Face, HairStyle, Hat, Mouth, Outfit, Style, Subject

# The palette behind each attribute that also has an exact colour ``<attribute>_rgb``.
COLOURED = {
    "skin": palette.SKINS,
    "hair": palette.HAIRS,
    "iris": palette.IRISES,
    "shirt": palette.SHIRTS,
    "backdrop_colour": palette.BACKDROPS,
}

# Number of values of each discrete attribute: what the classifier predicts.
ATTRIBUTES = {
    "subject": len(Subject),
    "skin": len(palette.SKINS),
    "hair": len(palette.HAIRS),
    "hair_style": len(HairStyle),
    "face": len(Face),
    "eyes_open": 2,
    "iris": len(palette.IRISES),
    "mouth": len(Mouth),
    "sunglasses": 2,
    "hat": len(Hat),
    "flower": 2,
    "outfit": len(Outfit),
    "shirt": len(palette.SHIRTS),
    "backdrop": len(Backdrop),
    "backdrop_colour": len(palette.BACKDROPS),
    "style": len(Style),
}

# What a cat does not show, and what a person made from a cat gets.
HUMAN_DEFAULTS = {
    "skin": palette.index(palette.SKINS, "peach"),
    "hair_style": int(HairStyle.BOB),
    "face": int(Face.ROUND),
    "outfit": int(Outfit.PLAIN),
}
COWBOY_RGB = palette.rgb("9a6234")
BEANIE_RGB = palette.rgb(palette.SHIRTS["red"])


@dataclass(frozen=True)
class Scene:
    """``[n]`` int64 attributes (values in `palette`), ``[n, 3]`` colours in 0..1 and a pose, for n pictures."""

    subject: Tensor
    skin: Tensor
    hair: Tensor
    hair_style: Tensor
    face: Tensor
    eyes_open: Tensor
    iris: Tensor
    mouth: Tensor
    sunglasses: Tensor
    hat: Tensor
    flower: Tensor
    outfit: Tensor
    shirt: Tensor
    backdrop: Tensor
    backdrop_colour: Tensor
    style: Tensor
    skin_rgb: Tensor
    hair_rgb: Tensor
    iris_rgb: Tensor
    shirt_rgb: Tensor
    backdrop_colour_rgb: Tensor
    hat_rgb: Tensor
    pose: Tensor  # [n, 4]: head offset x and y (half pictures), scale, tilt (radians)

    def __len__(self) -> int:
        return int(self.subject.shape[0])

    @property
    def device(self) -> torch.device:
        return self.subject.device

    def __getitem__(self, rows: Tensor | slice) -> Scene:
        return Scene(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def to(self, device: torch.device | str) -> Scene:
        """The same scenes on another device."""
        return Scene(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def where(self, mask: Tensor, values: dict[str, int]) -> Scene:
        """Set attributes where ``mask`` (``[n]`` bool) holds; a coloured attribute gets its palette colour exactly."""
        changed: dict[str, Tensor] = {}
        for name, value in values.items():
            changed[name] = getattr(self, name).masked_fill(mask, value)
            exact = _exact_colour(name, value)
            if exact is not None:
                key, colour = exact
                changed[key] = torch.where(mask[:, None], torch.tensor(colour, device=self.device), getattr(self, key))
        return replace(self, **changed)


def _exact_colour(name: str, value: int) -> tuple[str, tuple[float, float, float]] | None:
    """The colour tensor that an attribute's value fixes, if it fixes one."""
    if name == "hat":
        return "hat_rgb", COWBOY_RGB if value == Hat.COWBOY else BEANIE_RGB
    if name not in COLOURED:
        return None
    return f"{name}_rgb", palette.rgb(list(COLOURED[name].values())[value])


def visible(scene: Scene) -> dict[str, Tensor]:
    """For each attribute, in which scenes the picture shows it (``[n]`` bool)."""
    person = scene.subject == Subject.PERSON
    colours = scene.style != Style.WESTERN
    bare_eyes = scene.sunglasses == 0
    always = torch.ones_like(person)
    return dict.fromkeys(ATTRIBUTES, always) | {
        "skin": person & colours,
        "hair": colours,
        "hair_style": person,
        "face": person,
        "eyes_open": bare_eyes,
        "iris": bare_eyes & (scene.eyes_open == 1) & colours,
        "outfit": person,
        "shirt": colours,
        "backdrop_colour": colours & (scene.backdrop < FIRST_LANDSCAPE),
    }


def sample_scenes(count: int, seed: int, cats: float = 0.3) -> Scene:
    """Draw ``count`` random scenes on the CPU; the same seed gives the same scenes.

    ``cats`` is the share of cats. Colours vary around their palette entry.
    """
    draw = _Draw(count, seed)
    subject = draw.chance(cats)
    attributes = {
        "subject": subject,
        "skin": draw.pick([1, 1.6, 1.2, 1, 1]),
        "hair": draw.pick([1.4, 1.6, 1.2, 1, 1, 0.7, 0.7, 0.6, 0.7]),
        "hair_style": draw.pick([1.0] * 6),
        "face": draw.pick([1.0] * 3),
        "eyes_open": draw.chance(0.85),
        "iris": draw.pick([1.4, 1, 1, 0.8]),
        "mouth": draw.pick([1.0, 1.4, 0.8]),
        "sunglasses": draw.chance(0.15),
        "hat": draw.pick([0.76, 0.16, 0.08]),
        "flower": draw.chance(0.15),
        "outfit": draw.pick([1.2, 0.9, 0.9]),
        "shirt": draw.pick([1.0] * 8),
        "backdrop": draw.pick([1.6, 1.6, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]),
        "backdrop_colour": draw.pick([1.0] * 8),
        "style": draw.pick([0.82, 0.11, 0.07]),
    }
    spread = {"skin": 0.02, "hair": 0.025, "iris": 0.02, "shirt": 0.03, "backdrop_colour": 0.025}
    colours = {f"{name}_rgb": draw.near(COLOURED[name], attributes[name], by) for name, by in spread.items()}
    beanie = draw.near(palette.SHIRTS, draw.pick([1.0] * 8), 0.03)
    cowboy = torch.tensor(COWBOY_RGB).expand(count, 3)
    colours["hat_rgb"] = torch.where((attributes["hat"] == Hat.COWBOY)[:, None], cowboy, beanie)
    scene = Scene(**attributes, **colours, pose=draw.pose())
    scene = scene.where(subject == Subject.CAT, HUMAN_DEFAULTS)
    western = {"hat": int(Hat.COWBOY), "backdrop": int(Backdrop.DESERT)}
    return scene.where(scene.style == Style.WESTERN, western)


class _Draw:
    """Random tensors for ``count`` scenes from one seeded generator."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.generator = torch.Generator().manual_seed(seed)

    def chance(self, probability: float) -> Tensor:
        return (torch.rand(self.count, generator=self.generator) < probability).long()

    def pick(self, weights: list[float]) -> Tensor:
        return torch.multinomial(torch.tensor(weights), self.count, replacement=True, generator=self.generator)

    def near(self, colours: dict[str, str], chosen: Tensor, by: float) -> Tensor:
        noise = torch.randn(self.count, 3, generator=self.generator).clamp(-2, 2) * by
        return (palette.table(colours)[chosen] + noise).clamp(0, 1)

    def pose(self) -> Tensor:
        unit = torch.rand(self.count, 4, generator=self.generator) * 2 - 1
        return unit * torch.tensor([0.08, 0.04, 0.05, 0.07]) + torch.tensor([0.0, 0.0, 1.1, 0.0])
