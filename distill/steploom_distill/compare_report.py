"""What a comparison found, as rows for a terminal, as Markdown and as JSON; and whether the student is good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import grammar
from .compare import Result
from .variants import STUDENT, TEACHER

MOST_DECIBELS_LOST = 1.0  # by the student, to the truth
MOST_POINTS_LOST = 2.0  # by the student, of edit success


@dataclass(frozen=True)
class Bar:
    """A bound on what the student may lose against the teacher."""

    name: str
    lost: float  # negative where the student is better
    most: float
    unit: str

    @property
    def is_met(self) -> bool:
        return self.lost <= self.most

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        return f"{self.name}: loses {self.lost:.2f} {self.unit}, may lose {self.most:g}: {verdict}"


@dataclass(frozen=True)
class Setting:
    """What was compared, and where."""

    model: str
    adapter: str  # empty: none
    full_student: str  # empty: none
    device: str
    batch: int  # pictures at once
    seed: int
    guidance_scale: float
    image_guidance_scale: float
    notes: tuple[str, ...] = ()  # what was left out, and why


@dataclass(frozen=True)
class Column:
    """A figure of a table."""

    title: str
    short: str  # for 80 characters a line
    value: Callable[[Result], float | None]
    form: str = "{:.2f}"

    def cell(self, result: Result) -> str:
        value = self.value(result)
        return "" if value is None else self.form.format(value)


def _mean(measure: str, scale: float = 1.0) -> Callable[[Result], float | None]:
    def value(result: Result) -> float | None:
        mean = result.mean(measure)
        return None if mean is None else scale * mean

    return value


COLUMNS = (
    Column("UNet rows", "UNet\nrows", lambda result: result.variant.rows_per_image, "{:d}"),
    Column("images/s", "img/s", lambda result: result.images_per_s),
    Column("one alone, ms", "alone\nms", lambda result: 1000 * result.alone_s, "{:.0f}"),
    Column("extra MB", "+MB", lambda result: result.variant.extra_bytes / 1e6, "{:.1f}"),
    Column("PSNR to truth, dB", "PSNR\ntruth", _mean("psnr_truth")),
    Column("PSNR to teacher, dB", "PSNR\nteacher", _mean("psnr_teacher")),
    Column("L2 to truth", "L2\ntruth", _mean("l2_truth"), "{:.4f}"),
    Column("L2 to teacher", "L2\nteacher", _mean("l2_teacher"), "{:.4f}"),
    Column("perceptual to truth", "percep\ntruth", _mean("perceptual_truth"), "{:.4f}"),
    Column("perceptual to teacher", "percep\nteacher", _mean("perceptual_teacher"), "{:.4f}"),
    Column("success, %", "success\n%", _mean("success", 100), "{:.1f}"),
    Column("others kept, %", "kept\n%", _mean("kept", 100), "{:.1f}"),
)
_ONLY_WITHOUT_JUDGE = ("L2 to truth", "L2 to teacher")  # they say what PSNR says

Table = tuple[list[str], list[list[str]]]  # headings, and the cells of each row


def bars(results: Sequence[Result]) -> list[Bar]:
    """Those that can be computed: none without the teacher, the student and a judge."""
    found = {result.variant.name: result for result in results}
    if TEACHER not in found or STUDENT not in found or found[TEACHER].mean("success") is None:
        return []
    return [
        Bar("PSNR to truth", _lost(found, "psnr_truth"), MOST_DECIBELS_LOST, "dB"),
        Bar("edit success", 100 * _lost(found, "success"), MOST_POINTS_LOST, "points"),
    ]


def _lost(found: dict[str, Result], measure: str) -> float:
    teacher, student = (found[name].mean(measure) for name in (TEACHER, STUDENT))
    assert teacher is not None
    assert student is not None
    return teacher - student


def main_table(results: Sequence[Result], is_short: bool = False) -> Table:
    """A row for each variant; columns that no variant fills are left out. The short one fits a terminal."""
    with_judge = any(result.mean("success") is not None for result in results)
    columns = [c for c in COLUMNS if not (with_judge and c.title in _ONLY_WITHOUT_JUDGE)]
    columns = [c for c in columns if any(c.cell(result) for result in results)]
    rows = [[r.variant.name if is_short else r.variant.plan.title, *(c.cell(r) for c in columns)] for r in results]
    return ["variant", *(c.short if is_short else c.title for c in columns)], rows


def _language_table(results: Sequence[Result]) -> Table:
    """Success and PSNR by the language of the instruction."""
    headings = ["variant"]
    headings += [f"{name} {code}" for name in ("PSNR to truth, dB,", "success, %,") for code in grammar.LANGUAGES]
    rows = []
    for result in results:
        pairs = [(measure, code) for measure in ("psnr_truth", "success") for code in grammar.LANGUAGES]
        rows.append([result.variant.plan.title, *(_figure(m, result.mean(m, code)) for m, code in pairs)])
    return headings, rows


def _edit_table(results: Sequence[Result], measure: str) -> Table:
    """A row for each edit, a column for each variant; English and Korean where there are languages."""
    edits = list(dict.fromkeys(score.edit for score in results[0].scores))
    rows = []
    for edit in edits:
        cells = []
        for result in results:
            chosen = [score for score in result.scores if score.edit == edit]
            cells.append(" / ".join(_figure(measure, score.measures.get(measure)) for score in chosen))
        rows.append([edit, *cells])
    return ["edit", *(result.variant.name for result in results)], rows


def _figure(measure: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" if measure in ("success", "kept") else f"{value:.1f}"


def markdown(setting: Setting, results: Sequence[Result]) -> str:
    """The whole report."""
    lines = [*_opening(setting, results), "", *_table_lines(main_table(results))]
    found = bars(results)
    if found:
        lines += ["", f"The student with 3 steps against the teacher with 35 ({STUDENT}, {TEACHER}):", ""]
        lines += [f"- {bar}" for bar in found]
    if results[0].mean("success") is None:
        lines += ["", "## By picture", "", "PSNR to the teacher, dB.", ""]
        return "\n".join([*lines, *_table_lines(_edit_table(results, "psnr_teacher"))]) + "\n"
    lines += ["", "## By language", "", *_table_lines(_language_table(results))]
    for title, measure in (("Edit success, %", "success"), ("PSNR to truth, dB", "psnr_truth")):
        lines += ["", f"## {title}, by edit (English / Korean)", "", *_table_lines(_edit_table(results, measure))]
    return "\n".join(lines) + "\n"


def _opening(setting: Setting, results: Sequence[Result]) -> list[str]:
    adapter = f"adapter {setting.adapter}" if setting.adapter else "no adapter"
    lines = [
        f"# {setting.model}, {adapter}",
        "",
        f"{results[0].pictures} pictures, guidance {setting.guidance_scale:g} (text) and "
        f"{setting.image_guidance_scale:g} (image), the same noise for all variants (seed {setting.seed}). "
        f"{setting.device}, float32, batches of at most {setting.batch} pictures.",
    ]
    return [*lines, *(f"\n{note[:1].upper()}{note[1:]}." for note in setting.notes)]


def _table_lines(table: Table) -> list[str]:
    headings, rows = table
    return [_line(headings), _line(["---"] * len(headings)), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_json(setting: Setting, results: Sequence[Result]) -> dict[str, Any]:
    """All figures, those of each edit and language too."""
    return {
        **vars(setting),
        "notes": list(setting.notes),
        "pictures": results[0].pictures,
        "bars": [{**vars(bar), "is_met": bar.is_met} for bar in bars(results)],
        "variants": [_variant_json(result) for result in results],
    }


def _variant_json(result: Result) -> dict[str, Any]:
    plan = result.variant.plan
    measures = list(dict.fromkeys(name for score in result.scores for name in score.measures))
    languages = dict.fromkeys(score.language for score in result.scores if score.language)
    return {
        "name": plan.name,
        "source": plan.source.value,
        "steps": plan.steps,
        "sampler": plan.sampler.name.lower(),
        "is_guided": plan.is_guided,
        "rows_per_image": result.variant.rows_per_image,
        "images_per_s": result.images_per_s,
        "seconds": result.seconds,
        "alone_s": result.alone_s,
        "extra_parameters": result.variant.extra_parameters,
        "extra_bytes": result.variant.extra_bytes,
        "mean": {measure: result.mean(measure) for measure in measures},
        "by_language": {code: {measure: result.mean(measure, code) for measure in measures} for code in languages},
        "scores": [vars(score) for score in result.scores],
    }
