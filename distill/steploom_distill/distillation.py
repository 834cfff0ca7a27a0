"""What the stages of distillation share: who is imitated, who learns, and along which noise levels."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steploom_common.adapter import AdapterTraits
from steploom_engine_worker.adapter import ALL_ROWS, AdaptedUNet, Adapter, linear_maps
from steploom_engine_worker.adapter_files import AdapterManifest, read_adapter
from steploom_engine_worker.model import Model, load_model
from steploom_engine_worker.model_files import weights_sha256
from steploom_engine_worker.schedule import ScheduleConfig

from .config import Config, StageConfig, StudentConfig
from .pairs import FolderPairs, Pairs, PairSource, PoolConfig, RenderedPairs
from .predictors import Conditions, GuidedTeacher, OneRow, Predictor
from .student import UNET, load_student, load_unet, save_student
from .teacher import change_weight
from .training import Budget, Trainer, prepare_device

SPACING = "trailing"  # a student of few steps must begin at pure noise (arXiv 2305.08891, section 3.3)


class DistillationError(ValueError):
    """The stages or their settings do not fit each other."""


@dataclass(frozen=True)
class Base:
    """The model that is distilled, on the device, its weights frozen."""

    root: Path
    model: Model
    device: torch.device

    @classmethod
    def load(cls, root: Path, device: torch.device) -> Base:
        """Read a model directory in float32.

        Raises:
            ModelError: it is wrong.
        """
        model = load_model(root)
        for network in (model.unet, model.vae, model.text_encoder):
            network.to(device)
        for network in (model.unet, model.vae):
            network.to(memory_format=torch.channels_last)
        return cls(root, model, device)

    @property
    def schedule(self) -> ScheduleConfig:
        """The model's, visited as students do."""
        return dataclasses.replace(self.model.schedule, timestep_spacing=SPACING)

    @property
    def latent_scale(self) -> float:
        """From the VAE's latents to those that are denoised."""
        return float(self.model.vae.config.scaling_factor)

    @torch.no_grad()
    def conditions(self, pairs: Pairs, empty_ids: Tensor, scales: Tensor) -> Conditions:
        """The conditions of a batch of pairs."""
        states = self.model.text_encoder(torch.cat([pairs.ids, empty_ids[None]]))[0]
        return Conditions(pairs.before, states[:-1], states[-1], scales)


@dataclass(frozen=True)
class Learner:
    """The student that is trained: changes of low rank on the base's UNet, or a UNet of its own."""

    network: AdaptedUNet
    adapter: Adapter
    own_unet: Any  # diffusers.UNet2DConditionModel, or None
    rank: int

    @property
    def trained(self) -> nn.Module:
        """What the optimizer sees."""
        return nn.ModuleList([self.adapter, self.own_unet]) if self.own_unet is not None else self.adapter

    def save(self, folder: Path, base: Base, config: StudentConfig, max_steps: int) -> None:
        """Write it as a student's folder, bound to the base's weights."""
        text, picture = highest_scales(base, config)
        traits = AdapterTraits(
            max_steps=max_steps,
            is_guidance_distilled=True,
            max_guidance_scale=text,
            max_image_guidance_scale=picture,
        )
        manifest = AdapterManifest(
            base_weights_sha256=weights_sha256(base.root), rank=self.rank, timestep_spacing=SPACING, traits=traits
        )
        save_student(folder, self.adapter, manifest, self.own_unet)


def build_learner(base: Base, config: StudentConfig, init: Path | None) -> Learner:
    """A student that does not differ from the base yet, or one that goes on from an earlier stage.

    Raises:
        ModelError: the folder to go on from is wrong, or of another base.
        DistillationError: it is of the other kind, or of another rank.
    """
    own = copy.deepcopy(base.model.unet).requires_grad_(True) if config.rank == 0 else None
    unet = base.model.unet if own is None else own
    names = [name for name, _ in linear_maps(unet) if config.adapts(name)] if config.rank else []
    adapter = Adapter(unet, names, config.rank, has_guidance=True)
    if init is not None:
        _take_over(base, config, init, adapter, own)
    network = AdaptedUNet(unet, [adapter])
    network.gates.segments = [(0, ALL_ROWS)]
    network.to(base.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch lacks it
    return Learner(network, adapter, own, config.rank)


def _take_over(base: Base, config: StudentConfig, init: Path, adapter: Adapter, own: nn.Module | None) -> None:
    files = read_adapter(init, weights_sha256(base.root))
    if files.manifest.rank != config.rank or (own is not None) != (init / UNET).is_dir():
        raise DistillationError(f"{init}: is a student of rank {files.manifest.rank}, rank {config.rank} is asked for")
    try:
        adapter.fill({name: tensor.float() for name, tensor in files.tensors.items()})
    except ValueError as error:
        raise DistillationError(f"{init}: does not fit: {error}") from None
    if own is not None:
        own.load_state_dict(load_unet(init / UNET).state_dict())


def load_teacher(base: Base, folder: Path | None, compiles: bool) -> Predictor:
    """The student of an earlier stage, or, without a folder, the base itself.

    Raises:
        ModelError: the folder is wrong, or of another base.
    """
    if folder is None:
        _maybe_compile(base.model.unet, compiles)
        return GuidedTeacher(base.model.unet)
    network = load_student(base.root, folder, base.model.unet, base.device)
    _maybe_compile(network, compiles)
    return OneRow(network)


def _maybe_compile(network: nn.Module, compiles: bool) -> None:
    if compiles:
        network.compile(dynamic=False)


def highest_scales(base: Base, config: StudentConfig) -> tuple[float, float]:
    """The most guidance towards text and picture that the student learns: at least the model's defaults."""
    defaults = base.model.defaults
    return (
        max(config.max_guidance_scale, defaults.guidance_scale),
        max(config.max_image_guidance_scale, defaults.image_guidance_scale),
    )


def draw_scales(count: int, base: Base, config: StudentConfig) -> Tensor:
    """Guidance scales ``[n, 2]``: the model's defaults in a share of the rows, in the others log-uniform in bounds."""
    highest = torch.tensor(highest_scales(base, config), device=base.device)
    defaults = base.model.defaults
    usual = torch.tensor([defaults.guidance_scale, defaults.image_guidance_scale], device=base.device)
    drawn = highest.pow(torch.rand(count, 2, device=base.device))
    is_usual = torch.rand(count, 1, device=base.device) < config.default_share
    return torch.where(is_usual, usual, drawn)


@dataclass(frozen=True)
class Stage:
    """Everything that a stage's loss needs, ready on the device."""

    base: Base
    source: PairSource
    learner: Learner
    teacher: Predictor
    student: OneRow
    config: StageConfig
    student_config: StudentConfig

    def batch(self) -> tuple[Pairs, Conditions, Tensor]:
        """Pairs, their conditions with fresh scales, and the scaled latents that noise is added to."""
        pairs = self.source.next(self.config.batch)
        scales = draw_scales(len(pairs.ids), self.base, self.student_config)
        by = self.base.conditions(pairs, self.source.empty_ids, scales)
        return pairs, by, pairs.after * self.base.latent_scale

    def places(self, pairs: Pairs) -> Tensor:
        """Weights ``[n, 1, h, w]``: more where the edit changes the picture."""
        scale = self.base.latent_scale
        return change_weight(pairs.after * scale, pairs.before * scale, self.config.change_weight)


Loss = Callable[[Stage], Callable[[], tuple[Tensor, dict[str, Tensor]]]]


@dataclass(frozen=True)
class Paths:
    """Folders of a stage."""

    model: Path
    out: Path  # the student, the checkpoint and the log
    teacher: Path | None = None  # of an earlier stage; None: the model itself
    init: Path | None = None  # of the student to go on from
    pairs: Path | None = None  # of a folder of pairs; None: the renderer


def run_stage(
    name: str, paths: Paths, config: Config, settings: StageConfig, max_steps: int, loss: Loss, device: torch.device
) -> None:
    """Train a student, or go on from ``out/NAME.pt``, and write it to ``out``.

    Raises:
        ModelError: a model's or student's folder is wrong.
        DistillationError: what is asked for does not fit.
        PairsError: the folder of pairs is wrong.
    """
    prepare_device(device)
    torch.manual_seed(settings.seed)
    base = Base.load(paths.model, device)
    learner = build_learner(base, config.student, paths.init)
    budget = Budget(settings.minutes * 60, settings.max_steps)
    trainer = Trainer(
        name, learner.trained, paths.out, budget, settings.rate(learner.rank), settings.warmup_steps,
        settings.ema_decay, settings.weight_decay,
    )  # fmt: skip
    trainer.resume()
    compiles = settings.compile and device.type == "cuda"
    teacher = load_teacher(base, paths.teacher, compiles)
    _maybe_compile(learner.network, compiles)
    stage = Stage(
        base, _open_pairs(base, paths.pairs, settings, budget.step), learner, teacher, OneRow(learner.network),
        settings, config.student,
    )  # fmt: skip
    trainer.fit(loss(stage), settings.batch)
    trainer.finish()
    learner.save(paths.out, base, config.student, max_steps)


def _open_pairs(base: Base, folder: Path | None, settings: StageConfig, batches_before: int) -> PairSource:
    model = base.model
    if folder is not None:
        return FolderPairs(folder, model.vae, model.tokenizer, model.side, base.device)
    pool = PoolConfig(settings.seed, settings.pool, settings.chunk, settings.refresh_every, settings.no_op)
    return RenderedPairs(pool, model.vae, model.tokenizer, model.side, base.device, batches_before)
