"""Runs variants on the same pictures from the same noise: how good each is, and how long it takes.

Pictures go through in batches, each batch through all variants in turn, so that no variant meets a device that is
colder or busier than another's, and only one batch is in memory. Seconds are those of sampling alone: pictures and
instructions in, pictures out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch
from torch import Tensor

from .classifier import Classifier
from .evaluate import Case, cases, read_success
from .metrics import l2, psnr
from .pairs import PictureFiles, read_pairs, read_picture
from .perceptual import perceptual_distance
from .sampling import Editor
from .variants import TEACHER, Variant

ALONE_REPEATS = 3  # of the picture that is timed by itself
_BATCH_PIXELS = {"cuda": 256 * 128**2}  # of the pictures of a batch, each three rows
_BATCH_PIXELS_ELSEWHERE = 16 * 128**2

Measures = dict[str, float]  # by name; `compare_report` says what they are


@dataclass(frozen=True)
class Part:
    """Pictures that are reported together."""

    edit: str  # its name, or the picture's where there are no edits
    language: str  # empty where it is not known
    texts: list[str]
    load: Callable[[], tuple[Tensor, Tensor | None]]  # before, and the truth where there is one: [n, 3, s, s] in 0..1
    case: Case | None = None  # what the judge reads success by


@dataclass(frozen=True)
class PartScore:
    """Means over the pictures of a part."""

    edit: str
    language: str
    count: int
    measures: Measures


@dataclass
class Result:
    """How one variant did."""

    variant: Variant
    scores: list[PartScore] = field(default_factory=list)
    seconds: float = 0.0  # of sampling, for all pictures
    alone_s: float = 0.0  # of sampling one picture by itself

    @property
    def pictures(self) -> int:
        return sum(score.count for score in self.scores)

    @property
    def images_per_s(self) -> float:
        return self.pictures / self.seconds

    def mean(self, measure: str, language: str | None = None) -> float | None:
        """Mean over the parts that have the measure; None where none has."""
        chosen = [score for score in self.scores if language in (None, score.language)]
        values = [score.measures[measure] for score in chosen if measure in score.measures]
        return fmean(values) if values else None


def avatar_parts(count: int, size: int, device: torch.device) -> list[Part]:
    """Held-out faces and sentences, ``count`` for each edit and language."""
    chosen = cases(count, seed=0)
    return [Part(c.edit.name, c.language, c.texts, partial(c.pictures, size, device), c) for c in chosen]


def folder_parts(folder: Path, size: int, device: torch.device) -> list[Part]:
    """The pictures of a folder, one by one.

    Raises:
        PairsError: see `read_pairs`.
    """
    return [
        Part(item.before.stem, "", [item.instruction], partial(_read, item, size, device))
        for item in read_pairs(folder)
    ]


def _read(item: PictureFiles, size: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    after = read_picture(item.after, size)[None].to(device) if item.after else None
    return read_picture(item.before, size)[None].to(device), after


def total_rows(parts: Sequence[Part], variants: Sequence[Variant]) -> int:
    """UNet rows that `compare` reports as it goes."""
    pictures = sum(len(part.texts) for part in parts) + ALONE_REPEATS
    return pictures * sum(variant.rows_per_image for variant in variants)


def compare(
    editor: Editor, judge: Classifier | None, parts: Sequence[Part], variants: Sequence[Variant], seed: int,
    on_rows: Callable[[int], None],
) -> list[Result]:  # fmt: skip
    """Edit all pictures by all variants; picture k of all starts from the noise of ``seed + k`` in each.

    Args:
        editor: the model.
        judge: reads success and gives features; None: pixels are compared alone.
        parts: at least one.
        variants: at least one; with the teacher among them, all are compared with it.
        seed: of the noise.
        on_rows: is told how many UNet rows were computed.
    """
    limit = batch_size(editor)
    results = [Result(variant) for variant in variants]
    warm: set[tuple[str, int]] = set()
    first = 0
    for group in _groups(parts, limit):
        loaded = [part.load() for part in group]
        before = torch.cat([pictures for pictures, _ in loaded])
        texts = [text for part in group for text in part.texts]
        teacher: tuple[Tensor, ...] = ()
        for result in results:
            edited, seconds = _edit_all(editor, result.variant, before, texts, seed + first, limit, warm)
            result.seconds += seconds
            pieces = torch.split(edited, [len(part.texts) for part in group])
            teacher = pieces if result.variant.name == TEACHER else teacher
            for number, (part, pictures) in enumerate(zip(group, pieces, strict=True)):
                others = {"truth": loaded[number][1], "teacher": teacher[number] if teacher else None}
                result.scores.append(_score(judge, part, pictures, others))
            on_rows(len(texts) * result.variant.rows_per_image)
        first += len(texts)
    for result in results:
        result.alone_s = _time_alone(editor, result.variant, parts[0], seed)
        on_rows(ALONE_REPEATS * result.variant.rows_per_image)
    return results


def batch_size(editor: Editor) -> int:
    """Pictures that are sampled at once on the editor's device."""
    pixels = _BATCH_PIXELS.get(editor.device.type, _BATCH_PIXELS_ELSEWHERE)
    return max(1, pixels // editor.model.side**2)


def _groups(parts: Sequence[Part], limit: int) -> Iterator[list[Part]]:
    """Parts in order, as many at once as have no more than ``limit`` pictures; always at least one."""
    group: list[Part] = []
    for part in parts:
        if group and sum(len(item.texts) for item in group) + len(part.texts) > limit:
            yield group
            group = []
        group.append(part)
    yield group


def _edit_all(
    editor: Editor, variant: Variant, before: Tensor, texts: list[str], seed: int, limit: int,
    warm: set[tuple[str, int]],
) -> tuple[Tensor, float]:  # fmt: skip
    """The edited pictures and the seconds that they took; a batch of a new size runs one step first, untimed."""
    edited, seconds = [], 0.0
    for start in range(0, len(texts), limit):
        rows = slice(start, start + limit)
        images, words = before[rows], texts[rows]
        if (variant.name, len(words)) not in warm:
            variant.edit(editor, images, words, seed, steps=1)
            warm.add((variant.name, len(words)))
        pictures, spent = _timed(editor, variant, images, words, seed + start)
        edited.append(pictures)
        seconds += spent
    return torch.cat(edited), seconds


def _timed(editor: Editor, variant: Variant, images: Tensor, texts: list[str], seed: int) -> tuple[Tensor, float]:
    _finish(editor.device)
    started = time.perf_counter()
    pictures = variant.edit(editor, images, texts, seed)
    _finish(editor.device)
    return pictures, time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time_alone(editor: Editor, variant: Variant, part: Part, seed: int) -> float:
    images, texts = part.load()[0][:1], part.texts[:1]
    variant.edit(editor, images, texts, seed, steps=1)
    return median(_timed(editor, variant, images, texts, seed)[1] for _ in range(ALONE_REPEATS))


def _score(judge: Classifier | None, part: Part, pictures: Tensor, others: dict[str, Tensor | None]) -> PartScore:
    """Compares pictures with others; the teacher's are not compared with themselves."""
    measures: Measures = {}
    for name, other in others.items():
        if other is not None and other is not pictures:
            measures |= {f"{key}_{name}": value for key, value in _distances(judge, pictures, other).items()}
    if judge is not None and part.case is not None:
        measures["success"], measures["kept"] = read_success(judge, part.case, pictures)
    return PartScore(part.edit, part.language, len(part.texts), measures)


def _distances(judge: Classifier | None, pictures: Tensor, other: Tensor) -> Measures:
    found = {"psnr": psnr(pictures, other), "l2": l2(pictures, other)}
    if judge is not None:
        with torch.no_grad():
            found["perceptual"] = perceptual_distance(judge, pictures, other)
    return {key: float(values.mean()) for key, values in found.items()}
