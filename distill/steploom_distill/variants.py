"""What an evaluation compares: the teacher with many and with few steps, and its students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from steploom_engine_worker.schedule import Sampler

from .sampling import Editor, Guidance, row_weights
from .student import Student


class Source(StrEnum):
    """Which network a variant samples with."""

    TEACHER = "teacher"
    STUDENT = "student"
    FULL = "full"


@dataclass(frozen=True)
class Plan:
    """A variant before its network is known."""

    name: str
    title: str
    source: Source
    steps: int
    sampler: Sampler = Sampler.DDIM
    is_guided: bool = True  # else both scales are 1: a single row a step, as a distilled student has


TEACHER, STUDENT = "teacher-35", "student-3"  # those that the others, and the bars, are held against
PLANS = (
    Plan(TEACHER, "teacher, 35 steps", Source.TEACHER, 35),  # first: the others are compared with its pictures
    Plan("teacher-3", "teacher, 3 steps", Source.TEACHER, 3),
    Plan("teacher-3-dpmpp", "teacher, 3 steps, DPM-Solver++", Source.TEACHER, 3, Sampler.DPMPP_2M),
    Plan("teacher-3-plain", "teacher, 3 steps, no guidance", Source.TEACHER, 3, is_guided=False),
    Plan(STUDENT, "student, 3 steps", Source.STUDENT, 3),
    Plan("student-2", "student, 2 steps", Source.STUDENT, 2),
    Plan("student-1", "student, 1 step", Source.STUDENT, 1),
    Plan("full-3", "full-weights student, 3 steps", Source.FULL, 3),
)
NAMES = tuple(plan.name for plan in PLANS)


class VariantError(ValueError):
    """A variant that was asked for does not exist, or cannot be sampled."""


@dataclass(frozen=True)
class Variant:
    """One way of editing a picture."""

    plan: Plan
    guidance: Guidance
    student: Student | None  # None: the teacher

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def rows_per_image(self) -> int:
        """UNet rows."""
        return self.plan.steps * len(row_weights(self.guidance, self.student))

    @property
    def extra_parameters(self) -> int:
        """Weights beside the teacher's."""
        if self.student is None:
            return 0
        network = self.student.network if self.student.has_own_unet else self.student.network.adapters
        return sum(parameter.numel() for parameter in network.parameters())

    @property
    def extra_bytes(self) -> int:
        """Of weight files beside the teacher's."""
        files = self.student.folder.rglob("*.safetensors") if self.student else ()
        return sum(file.stat().st_size for file in files)

    def edit(self, editor: Editor, images: Tensor, texts: list[str], seed: int, steps: int | None = None) -> Tensor:
        """See `Editor.edit`; with another number of steps where one is given."""
        steps = steps or self.plan.steps
        return editor.edit(images, texts, steps, self.guidance, seed, self.plan.sampler, self.student)


def choose_variants(
    names: Sequence[str] | None, students: Mapping[Source, Student], guidance: Guidance
) -> tuple[list[Variant], list[str]]:
    """The variants of these names, in the order of `PLANS`; without names, all that can be sampled.

    Returns:
        The variants, and a line for each reason why others are left out.

    Raises:
        VariantError: a name is unknown, or its variant cannot be sampled.
    """
    for name in names or ():
        if name not in NAMES:
            raise VariantError(f"there is no variant {name!r}; there are: {', '.join(NAMES)}")
    variants: list[Variant] = []
    left_out: dict[str, list[str]] = {}
    for plan in PLANS:
        if names is not None and plan.name not in names:
            continue
        problem = _problem(plan, students, guidance)
        if not problem:
            scales = guidance if plan.is_guided else Guidance(1.0, 1.0)
            variants.append(Variant(plan, scales, students.get(plan.source)))
        elif names is not None:
            raise VariantError(f"variant {plan.name}: {problem}")
        elif plan.source is not Source.FULL or Source.FULL in students:
            left_out.setdefault(problem, []).append(plan.name)
    return variants, [f"left out {', '.join(names)}: {problem}" for problem, names in left_out.items()]


def _problem(plan: Plan, students: Mapping[Source, Student], guidance: Guidance) -> str:
    """Why a plan cannot be sampled; empty where it can."""
    if plan.source is Source.TEACHER:
        return ""
    student = students.get(plan.source)
    if student is None:
        return "the model has no adapter" if plan.source is Source.STUDENT else "needs a full-weights student"
    found = student.manifest.traits.violations(student.name, plan.steps, guidance.text, guidance.image)
    return "; ".join(f"{field} {problem}" for field, problem in found)
