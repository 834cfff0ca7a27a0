"""Pictures for people: grids of edits, and the demo's input pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .edits import EDIT_INDEX, EDITS, apply_edit
from .grammar import parse
from .palette import HAIRS, IRISES, SHIRTS, SKINS, Backdrop, Face, HairStyle, Mouth, Outfit, Subject, index
from .renderer import render
from .sampling import Editor, Guidance
from .scene import Scene, sample_scenes

# English and Korean for the same edit, as the README shows them; the last one starts from the cat, as do the next.
SHOWN = (
    ("make the hair blond", "금발로 만들어 줘"),
    ("put on sunglasses", "썬글라스를 씌워 줘"),
    ("close the eyes", "눈을 감겨 줘"),
    ("add a flower", "꽃 추가"),
    ("turn it into a western", "서부 영화로 만들어 줘"),
    ("draw it as an illustration", "일러스트화"),
    ("turn the cat into a person", "인간화"),
)
SHOWN_CAT = (("put on a cowboy hat", "카우보이 모자를 씌워 줘"), ("put it at the beach", "해변으로 보내 줘"))
CAPTIONS = (*SHOWN, *SHOWN_CAT)
TILE, GAP, CAPTION = 192, 18, 58
SMALL, MARGIN, HEAD = 128, 180, 48  # pixels: a picture, the captions at its left, the titles above


def posed(values: Mapping[str, int]) -> Scene:
    """One scene with the figure straight in the middle, palette colours, and these attributes."""
    scene = sample_scenes(1, 0)
    scene.pose.copy_(torch.tensor([[0.0, 0.0, 1.1, 0.0]]))
    neutral = {"eyes_open": 1, "sunglasses": 0, "hat": 0, "flower": 0, "style": 0, "backdrop_colour": 0}
    neutral |= {"outfit": int(Outfit.PLAIN), "mouth": int(Mouth.SMILE), "backdrop": int(Backdrop.SOLID)}
    return scene.where(torch.ones(1, dtype=torch.bool), neutral | dict(values))


def portrait() -> Scene:
    """The demo's person."""
    return posed(
        {
            "subject": Subject.PERSON,
            "skin": index(SKINS, "peach"),
            "hair": index(HAIRS, "brown"),
            "hair_style": HairStyle.LONG,
            "face": Face.OVAL,
            "iris": index(IRISES, "green"),
            "outfit": Outfit.STRIPES,
            "shirt": index(SHIRTS, "blue"),
            "backdrop": Backdrop.GRADIENT,
        }
    )


def cat() -> Scene:
    """The demo's cat."""
    return posed(
        {
            "subject": Subject.CAT,
            "hair": index(HAIRS, "red"),
            "iris": index(IRISES, "green"),
            "shirt": index(SHIRTS, "blue"),
            "backdrop": Backdrop.DOTS,
            "backdrop_colour": 3,
        }
    )


def truth(scene: Scene, instruction: str, size: int = 128) -> Tensor:
    """The exact picture ``[n, 3, size, size]`` that an instruction of the grammar asks for.

    Raises:
        ValueError: for a sentence outside the grammar.
    """
    name = parse(instruction)
    if name is None:
        raise ValueError(f"not an instruction of the grammar: {instruction!r}")
    return render(apply_edit(EDITS[EDIT_INDEX[name]], scene), size)


def to_image(picture: Tensor) -> Image.Image:
    """``[3, h, w]`` in 0..1 as a Pillow image."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """A Pillow image as ``[3, h, w]`` in 0..1."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def write_inputs(folder: Path) -> None:
    """Write ``portrait.png`` and ``cat.png``, the demo's pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in (("portrait", portrait()), ("cat", cat())):
        to_image(render(scene, 128)[0]).save(folder / f"{name}.png")


def edit_grid(editor: Editor, guidance: Guidance, steps: int, font: Path | None, seed: int = 7) -> Image.Image:
    """Before and after of every edit of `SHOWN`, three to a row; the English sentence above the Korean one.

    ``font`` must hold Hangul; without one the captions are English alone. Half of the edits are asked in Korean.
    """
    before, texts = shown_inputs(editor.model.side)
    after = editor.edit(before.to(editor.device), texts, steps, guidance, seed)
    return _layout([to_image(p) for p in before], [to_image(p) for p in after], CAPTIONS, font)


def shown_inputs(size: int) -> tuple[Tensor, list[str]]:
    """The pictures ``[n, 3, size, size]`` of `CAPTIONS` and what is asked of each, every other one in Korean."""
    scenes = [portrait() if i < len(SHOWN) - 1 else cat() for i in range(len(CAPTIONS))]
    return torch.cat([render(scene, size) for scene in scenes]), [pair[i % 2] for i, pair in enumerate(CAPTIONS)]


def column_grid(
    columns: Sequence[tuple[str, Sequence[Image.Image]]], captions: Sequence[tuple[str, str]], font: Path | None
) -> Image.Image:
    """Pictures in columns under their titles, each row after its caption: English above Korean.

    ``font`` is as for `edit_grid`. Pictures of more than `SMALL` pixels are made smaller.
    """
    height = SMALL + 4
    sheet = Image.new("RGB", (MARGIN + len(columns) * height, HEAD + len(captions) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, pictures) in enumerate(columns):
        left = MARGIN + number * height
        pen.multiline_text(
            (left + SMALL // 2, HEAD // 2), title, fill="#222222", font=_face(font, 14), anchor="mm", align="center"
        )
        for row, picture in enumerate(pictures):
            sheet.paste(picture.resize((SMALL, SMALL), Image.Resampling.LANCZOS), (left, HEAD + row * height))
    for row, (english, korean) in enumerate(captions):
        middle = HEAD + row * height + SMALL // 2
        pen.multiline_text(
            (8, middle), "\n".join(wrap(english, 20)[:5]), fill="#222222", font=_face(font, 15), anchor="lm"
        )
        if font and korean:
            pen.text((8, middle + 30), korean, fill="#777777", font=_face(font, 14), anchor="lm")
    return sheet


def _face(font: Path | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(str(font), size) if font else ImageFont.load_default(size)


def _layout(
    before: list[Image.Image], after: list[Image.Image], captions: tuple[tuple[str, str], ...], font: Path | None
) -> Image.Image:
    columns = 3
    rows = -(-len(captions) // columns)
    cell_w, cell_h = 2 * TILE + 2 * GAP, TILE + CAPTION + GAP
    sheet = Image.new("RGB", (columns * cell_w + GAP, rows * cell_h + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, caption in enumerate(captions):
        left, top = GAP + i % columns * cell_w, GAP + i // columns * cell_h
        sheet.paste(before[i].resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
        sheet.paste(after[i].resize((TILE, TILE), Image.Resampling.LANCZOS), (left + TILE + 4, top))
        _caption(pen, left + TILE + 2, top + TILE + 8, caption, font)
    return sheet


def _caption(pen: ImageDraw.ImageDraw, x: int, y: int, caption: tuple[str, str], font: Path | None) -> None:
    english, korean = caption
    face = _face(font, 18)
    pen.text((x, y), english, fill="#222222", font=face, anchor="ma")
    if font:
        pen.text((x, y + 24), korean, fill="#777777", font=face, anchor="ma")
