"""The engine worker's settings: the `[worker]` table of steploom.toml."""

from __future__ import annotations

from dataclasses import dataclass

from steploom_common.settings import ConfigError, check, section, setting

DEFAULT_SLOTS = 32


@dataclass(frozen=True)
class FakeConfig:
    """The fake engine's costs and faults; seconds. All zero: it takes no time."""

    height: int = setting(128, "pixels of its pictures", at_least=8, at_most=4096)
    width: int = setting(128, "pixels of its pictures", at_least=8, at_most=4096)
    encode_s: float = setting(0.0, "seconds of an encode tick", at_least=0, at_most=60)
    encode_item_s: float = setting(0.0, "seconds more for each job in it", at_least=0, at_most=60)
    denoise_s: float = setting(0.0, "seconds of a denoise tick", at_least=0, at_most=60)
    denoise_row_s: float = setting(0.0, "seconds more for each row in it", at_least=0, at_most=60)
    decode_s: float = setting(0.0, "seconds of a decode tick", at_least=0, at_most=60)
    decode_item_s: float = setting(0.0, "seconds more for each job in it", at_least=0, at_most=60)
    fail_tick: int = setting(0, "the denoise tick, counted from 1, that raises; 0: none", at_least=0)
    adapters: tuple[str, ...] = setting((), "guidance-distilled adapters for at most 4 steps that it says it has")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class WorkerConfig:
    """One worker: one device, one model."""

    engine: str = setting("torch", "what runs the model", choices=("torch", "tensorrt", "fake"))
    model: str = setting("", "model directory in diffusers' layout; empty: the embedded avatar-edit")
    engines: str = setting(
        "",
        "folder of what `steploom build-engine` built, for the tensorrt engine; empty: engines in the model directory",
    )
    device: str = setting("cpu", "torch device; the tensorrt engine takes the first GPU where it names none")
    dtype: str = setting(
        "float32",
        "type of weights and activations; float16 on a GPU alone; of the tensorrt engine its plans' is taken",
        choices=("float32", "bfloat16", "float16"),
    )
    threads: int = setting(0, "CPU threads of the engine; 0: all cores", at_least=0, at_most=1024)
    slots: int = setting(
        0,
        "jobs that the worker holds at once; 0: 32, on a GPU what a tenth of its free memory holds, up to 256",
        at_least=0,
        at_most=4096,
    )
    max_steps: int = setting(100, "denoising steps that a slot's coefficient table holds", at_least=1, at_most=1000)
    merge_adapters: bool = setting(
        True,
        "ticks of one adapter alone cost about as much as without it; each takes the adapted weights' memory again",
    )
    spare_adapters: int = setting(
        4,
        "adapters, and new versions of them, that may be loaded while the worker serves, at once",
        at_least=0,
        at_most=256,
    )
    record_all: bool = setting(
        False,
        "a GPU's worker is ready only when every bucket is recorded, not with the largest of each stage already",
    )
    fp8: str = setting(
        "off",
        "linear: the UNet's transformers multiply floats of 8 bits, on GPUs of compute capability 8.9 or later",
        choices=("off", "linear"),
    )
    denoise_buckets: tuple[int, ...] = setting(
        (1, 2, 3, 4, 6, 9, 12, 18, 24), "rows of a denoise tick that are measured", at_least=1, at_most=4096
    )
    encode_buckets: tuple[int, ...] = setting(
        (1, 2, 4), "jobs of an encode tick that are measured", at_least=1, at_most=4096
    )
    decode_buckets: tuple[int, ...] = setting(
        (1, 2, 4), "jobs of a decode tick that are measured", at_least=1, at_most=4096
    )
    warmup_repeats: int = setting(3, "most measurements of each bucket; the median counts", at_least=1, at_most=100)
    tick_timeout_s: float = setting(
        60.0,
        "least seconds at one tick after which the worker takes itself for stuck, and ends",
        above=0,
        at_most=3600,
    )
    tick_timeout_factor: float = setting(
        20.0,
        "times the measured seconds of the dearest such tick after which it does, where that is longer",
        at_least=1,
        at_most=10_000,
    )
    prepare_timeout_s: float = setting(
        1800.0,
        "seconds at loading and warming up, or at one preparation while it serves, after which it does",
        above=0,
        at_most=86_400,
    )
    drain_s: float = setting(30.0, "seconds for jobs in slots to end once asked to stop", at_least=0, at_most=3600)
    fake: FakeConfig = section(FakeConfig, "the fake engine")

    @property
    def num_slots(self) -> int:
        """Jobs at once where memory is no question."""
        return self.slots or DEFAULT_SLOTS

    def __post_init__(self) -> None:
        check(self)
        if self.fp8 != "off" and self.engine != "fake":
            self._check_fp8()
        for name in ("denoise_buckets", "encode_buckets", "decode_buckets"):
            buckets = getattr(self, name)
            if not buckets or list(buckets) != sorted(set(buckets)):
                raise ConfigError(name, f"is {list(buckets)}, must be a rising list of at least one number")

    def _check_fp8(self) -> None:
        if self.engine == "tensorrt":
            raise ConfigError("fp8", "is of the torch engine: `steploom build-engine --precision` chooses for tensorrt")
        if not self.device.startswith("cuda"):
            raise ConfigError("fp8", f"is {self.fp8!r}, which needs a GPU: device is {self.device!r}")
        if self.dtype == "float32":
            raise ConfigError("fp8", f"is {self.fp8!r}, which needs dtype float16 or bfloat16: it is {self.dtype}")
