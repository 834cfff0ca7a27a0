"""What every training stage shares: the wall-clock schedule, averaged weights, checkpoints and the metrics log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LOG_EVERY_S = 5.0
CHECKPOINT_EVERY_S = 60.0


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or CUDA where there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def prepare_device(device: torch.device) -> None:
    """Allow TF32 and let cuDNN choose its convolutions; nothing on the CPU."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on CUDA, plain float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@dataclass
class Budget:
    """A wall-clock budget that a run spends in full: the schedule is a function of the time spent.

    So a run on a slow or a shared device still ends with its learning rate decayed, after fewer steps.
    """

    seconds: float
    max_steps: int = 0  # 0: no limit
    spent: float = 0.0  # seconds, earlier runs of the same checkpoint included
    step: int = 0
    _last: float = field(default_factory=time.monotonic)

    def __iter__(self) -> Iterator[int]:
        self._last = time.monotonic()
        while not self.is_over:
            yield self.step
            self.step += 1
            now = time.monotonic()
            self.spent, self._last = self.spent + now - self._last, now

    @property
    def is_over(self) -> bool:
        return self.spent >= self.seconds or (self.max_steps > 0 and self.step >= self.max_steps)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0..1."""
        by_steps = self.step / self.max_steps if self.max_steps else 0.0
        return min(1.0, max(self.spent / self.seconds, by_steps))

    def rate(self, peak: float, warmup_steps: int) -> float:
        """Learning rate: linear warm-up by step, then a half cosine over the budget down to 1 % of the peak."""
        warm = min(1.0, (self.step + 1) / max(1, warmup_steps))
        return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress)))


class Ema:
    """An exponential moving average of parameters, with a warm-up of its decay."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.source = parameters
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.source], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Sequence[Tensor]) -> None:
        """Write the average into other parameters of the same shapes."""
        for target, value in zip(parameters, self.average, strict=True):
            target.copy_(value)


class MetricsLog:
    """One JSON object a line, appended to a file and printed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._last = 0.0

    def is_due(self) -> bool:
        return time.monotonic() - self._last >= LOG_EVERY_S

    def write(self, **values: float | int | str) -> None:
        self._last = time.monotonic()
        line = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
        print(json.dumps(line), flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Trainer:
    """One optimizer over one module, with its average, budget, log and checkpoint file.

    ``loss`` is called once a step and returns the loss and further numbers to log.
    """

    def __init__(
        self, name: str, module: nn.Module, run: Path, budget: Budget, rate: float, warmup_steps: int,
        decay: float, weight_decay: float = 0.01,
    ) -> None:  # fmt: skip
        self.name = name
        self.module = module
        self.path = run / f"{name}.pt"
        self.budget = budget
        self.peak, self.warmup_steps = rate, warmup_steps
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        on_cuda = self.parameters[0].is_cuda
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=on_cuda
        )
        self.ema = Ema(self.parameters, decay)
        self.log = MetricsLog(run / f"{name}.jsonl")
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Load the checkpoint if there is one."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location=self.parameters[0].device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        for target, value in zip(self.ema.average, state["ema"], strict=True):
            target.copy_(value)
        self.budget.step, self.budget.spent = state["step"], state["spent"]
        return True

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.average,
            "step": self.budget.step,
            "spent": self.budget.spent,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)
        self._saved = time.monotonic()

    def fit(self, loss: Callable[[], tuple[Tensor, dict[str, Tensor]]], samples_per_step: int) -> None:
        """Train until the budget is spent; then write the checkpoint."""
        self.module.train()
        first_step, first_spent = self.budget.step, self.budget.spent
        for step in self.budget:
            value, extras = loss()
            self._update(value, step)
            if self.log.is_due() or step == first_step:
                seconds = max(1e-6, self.budget.spent - first_spent)
                speed = (step - first_step) * samples_per_step / seconds
                self._report(step, value, extras, speed)
            if time.monotonic() - self._saved >= CHECKPOINT_EVERY_S:
                self.save()
        self.save()

    def _update(self, loss: Tensor, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.budget.rate(self.peak, self.warmup_steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.ema.update(step)

    def _report(self, step: int, loss: Tensor, extras: dict[str, Tensor], speed: float) -> None:
        numbers: dict[str, Any] = {name: float(value.detach()) for name, value in extras.items()}
        if loss.is_cuda:
            numbers["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
        self.log.write(
            stage=self.name,
            step=step,
            progress=self.budget.progress,
            rate=self.budget.rate(self.peak, self.warmup_steps),
            loss=float(loss.detach()),
            samples_per_s=speed,
            **numbers,
        )

    def finish(self) -> None:
        """Put the averaged weights into the module."""
        self.ema.copy_to(self.parameters)
        self.module.eval()
