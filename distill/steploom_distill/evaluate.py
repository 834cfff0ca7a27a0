"""How good the model's edits are on faces and sentences that training never showed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from . import grammar
from .classifier import Classifier, load_classifier
from .data import HELD_OUT_SEED, held_out_scenes
from .edits import EDITS, Edit, apply_edit
from .metrics import psnr
from .renderer import render
from .sampling import Editor, Guidance
from .scene import Scene, sample_scenes, visible
from .training import pick_device, prepare_device

SWEEP = tuple(Guidance(text, image) for text in (1.5, 2.5, 4.0) for image in (1.0, 1.4))
BATCH = 256  # pictures; three rows each


@dataclass(frozen=True)
class Case:
    """Scenes and instructions for one edit in one language."""

    edit: Edit
    language: str
    scene: Scene
    texts: list[str]

    def pictures(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Before, and as the edit should make them: ``[n, 3, size, size]`` in 0..1 each."""
        before = self.scene.to(device)
        return render(before, size), render(apply_edit(self.edit, before), size)


@dataclass(frozen=True)
class Score:
    """Means over one edit and language."""

    edit: str
    language: str
    count: int
    psnr: float  # dB to the rendered truth
    success: float  # share whose edited attributes the classifier reads as asked, 0..1
    kept: float  # share of the other visible attributes read as they were, 0..1
    truth_success: float  # the classifier's own share on the rendered truth: the ceiling


def cases(count: int, seed: int) -> Iterator[Case]:
    """Held-out faces times held-out sentences, ``count`` for each edit and language."""
    for number, edit in enumerate(EDITS):
        for language in grammar.LANGUAGES:
            chooser = random.Random(f"{seed}:{edit.name}:{language}")
            held_out = [i.text for i in grammar.instructions(edit.name, language) if i.is_held_out]
            scene = held_out_scenes(edit, count, 1000 * seed + 2 * number + grammar.LANGUAGES.index(language))
            yield Case(edit, language, scene, chooser.choices(held_out, k=len(scene)))


def run_cases(
    editor: Editor, judge: Classifier, chosen: list[Case], steps: int, guidance: Guidance, size: int, seed: int
) -> list[Score]:
    """Edit the pictures of all cases, in large batches, and compare with the renders of the edited scenes."""
    drawn = [case.pictures(size, editor.device) for case in chosen]
    before = torch.cat([pictures for pictures, _ in drawn])
    texts = [text for case in chosen for text in case.texts]
    edited = [
        editor.edit(before[i : i + BATCH], texts[i : i + BATCH], steps, guidance, seed + i)
        for i in range(0, len(texts), BATCH)
    ]
    pieces = torch.split(torch.cat(edited), [len(case.texts) for case in chosen])
    return [_score(judge, case, edited, truth) for case, edited, (_, truth) in zip(chosen, pieces, drawn, strict=True)]


def _score(judge: Classifier, case: Case, edited: Tensor, truth: Tensor) -> Score:
    success, kept = read_success(judge, case, edited)
    ceiling, _ = read_success(judge, case, truth)
    decibels = float(psnr(edited, truth).mean())
    return Score(case.edit.name, case.language, len(case.texts), decibels, success, kept, ceiling)


def read_success(judge: Classifier, case: Case, images: Tensor) -> tuple[float, float]:
    """Share of pictures with all judged attributes right, and share of other visible attributes kept."""
    edit, before = case.edit, case.scene.to(images.device)
    after = apply_edit(edit, before)
    read, shown = judge.read(images), visible(after)
    done = torch.ones_like(after.subject, dtype=torch.bool)
    kept = []
    for name, values in read.items():
        right = values == getattr(after, name)
        if name in edit.judged:
            done &= right | ~shown[name]
        elif name not in edit.sets:
            both = shown[name] & visible(before)[name]
            kept += right[both].float().tolist()
    return float(done.float().mean()), fmean(kept) if kept else 1.0


@torch.no_grad()
def vae_psnr(editor: Editor, size: int, count: int = 512) -> float:
    """Mean PSNR of encoding and decoding held-out pictures, dB."""
    scores = []
    for start in range(0, count, 64):
        images = render(sample_scenes(64, HELD_OUT_SEED + 2**30 + start).to(editor.device), size)
        restored = editor.decode(editor.encode(images)).clamp(0, 1)
        scores.append(float(psnr(restored, images).mean()))
    return fmean(scores)


def sweep(
    editor: Editor, judge: Classifier, steps: int, size: int, count: int, choices: tuple[Guidance, ...] = SWEEP
) -> list[dict[str, float]]:
    """Mean scores of each guidance choice on a few pictures (other ones than `evaluate` reports), best first.

    Success counts first, to half a percent; PSNR decides between equals.
    """
    rows = []
    chosen = list(cases(count, seed=5))
    for guidance in choices:
        scores = run_cases(editor, judge, chosen, steps, guidance, size, 77)
        row = asdict(guidance) | {"psnr": fmean(s.psnr for s in scores), "success": fmean(s.success for s in scores)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return sorted(rows, key=lambda row: (round(row["success"] * 200), row["psnr"]), reverse=True)


def evaluate(
    model: Path, judge_folder: Path, out: Path, count: int, steps: int, guidance: Guidance | None,
    sweep_count: int = 4, device: torch.device | None = None,
) -> dict[str, object]:  # fmt: skip
    """Score a model directory; writes ``metrics.json`` and ``metrics.md`` into ``out``.

    Without ``guidance`` a sweep chooses it.
    """
    device = device or pick_device()
    prepare_device(device)
    editor, judge = Editor.load(model, device), load_classifier(judge_folder, device)
    size = editor.model.side
    swept = [] if guidance else sweep(editor, judge, steps, size, sweep_count)
    chosen = guidance or Guidance(swept[0]["text"], swept[0]["image"])
    scores = run_cases(editor, judge, list(cases(count, seed=0)), steps, chosen, size, 1)
    report = summary(scores) | {
        "steps": steps,
        "guidance_scale": chosen.text,
        "image_guidance_scale": chosen.image,
        "vae_psnr": vae_psnr(editor, size),
        "sweep": swept,
        "scores": [asdict(score) for score in scores],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "metrics.md").write_text(markdown(scores))
    return report


def summary(scores: list[Score]) -> dict[str, object]:
    """Means over edits, in all and by language."""
    result: dict[str, object] = {}
    groups = {code: [s for s in scores if s.language == code] for code in grammar.LANGUAGES}
    for label, chosen in ({"all": scores} | groups).items():
        result[label] = {
            "psnr": fmean(s.psnr for s in chosen),
            "success": fmean(s.success for s in chosen),
            "kept": fmean(s.kept for s in chosen),
            "pictures": sum(s.count for s in chosen),
        }
    return result


def markdown(scores: list[Score]) -> str:
    """A table with a row for each edit and columns for each language."""
    lines = [
        "| edit | PSNR en (dB) | PSNR ko (dB) | success en | success ko | others kept | ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for edit in EDITS:
        en, ko = (next(s for s in scores if s.edit == edit.name and s.language == code) for code in grammar.LANGUAGES)
        lines.append(_row(edit.name, [en], [ko]))
    by_language = [[s for s in scores if s.language == code] for code in grammar.LANGUAGES]
    return "\n".join([*lines, _row("**mean**", *by_language)]) + "\n"


def _row(name: str, english: list[Score], korean: list[Score]) -> str:
    both = english + korean
    shares = [fmean(s.success for s in english), fmean(s.success for s in korean), fmean(s.kept for s in both)]
    cells = [f"{fmean(s.psnr for s in group):.1f}" for group in (english, korean)]
    cells += [f"{100 * share:.1f} %" for share in (*shares, fmean(s.truth_success for s in both))]
    return f"| {name} | " + " | ".join(cells) + " |"
