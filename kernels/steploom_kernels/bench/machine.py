"""A CUDA device as the harness sees it: repeats in CUDA graphs, with the cache emptied before each."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steploom_kernels.bench.case import Function, Inputs
from steploom_kernels.bench.copy_kernel import copy_triton
from steploom_kernels.bench.outcome import Timing
from steploom_kernels.bench.roofline import Ceilings, CopyPoint

COPY_BYTES = tuple(2**power for power in range(18, 31, 2))  # 256 KiB to 1 GiB, read and written together
MATMUL_SIDE = 8192
# One repeat is long against the launch of its graph, some microseconds, and moves more than the cache holds.
REPEAT_BYTES = 1_500_000_000
MAX_SETS = 256
_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "temperature.gpu")


def num_sets(num_bytes: int) -> int:
    """How many sets of inputs one repeat goes through: at least two, so that nothing is asked for twice in a row."""
    return min(MAX_SETS, max(2, math.ceil(REPEAT_BYTES / num_bytes)))


def quantiles(seconds: Sequence[float]) -> Timing:
    """Median, and what a tenth of the repeats is faster and slower than."""
    ranked = sorted(seconds)
    last = len(ranked) - 1
    low, median, high = (ranked[round(last * part)] for part in (0.1, 0.5, 0.9))
    return Timing(median, low, high)


class CudaMachine:
    """The current CUDA device."""

    def __init__(self, repeats: int) -> None:
        """Each time is the median of so many repeats."""
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._repeats = repeats
        properties = torch.cuda.get_device_properties(self.device)
        # Read, not written: written lines would still have to go to memory while the repeat is timed.
        self._flushed = torch.ones(max(4 * properties.L2_cache_size, 2**28) // 4, device=self.device)
        self._clocks_before = clocks()

    def num_sets(self, num_bytes: int) -> int:
        """See `num_sets`."""
        return num_sets(num_bytes)

    def describe(self) -> dict[str, object]:
        """GPU, versions and clocks."""
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": _triton_version(),
            "python": platform.python_version(),
            "clocks_before": self._clocks_before,
            "clocks_after": clocks(),
            "repeats": self._repeats,
        }

    def ceilings(self) -> Ceilings:
        """The faster of Triton's and CUDA's copy at each size, and a half-precision product of random matrices."""
        shape = (MATMUL_SIDE, MATMUL_SIDE)
        matrices = [tuple(self._normal(*shape) for _ in range(2)) for _ in range(2)]
        matmul_s = self.time(torch.mm, matrices).median_s  # first: it also brings the clocks up
        del matrices
        return Ceilings([self._copy(size) for size in COPY_BYTES], 2 * MATMUL_SIDE**3 / matmul_s)

    def time(self, run: Function, sets: Sequence[Inputs]) -> Timing:
        """Of one call: a graph of one call on each set is replayed, each time after a read of more than the cache."""
        self._warm_up(lambda: [run(*inputs) for inputs in (sets[0], sets[-1])])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [run(*inputs) for inputs in sets]  # kept, so that no result takes the memory of another
        graph.replay()
        seconds = self._replay(graph)
        del kept
        return quantiles([each / len(sets) for each in seconds])

    def _warm_up(self, run: Callable[[], object]) -> None:
        """Compiles and initialises on a side stream, as a capture wants it."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
            run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def _replay(self, graph: torch.cuda.CUDAGraph) -> list[float]:
        pairs = [(_event(), _event()) for _ in range(self._repeats)]
        for start, end in pairs:
            self._flushed.sum()  # runs while the host enqueues the graph, so that no gap is timed
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]

    def _copy(self, num_bytes: int) -> CopyPoint:
        count = num_bytes // 8  # values of 4 bytes, each read and written
        sets = [(torch.rand(count, device=self.device), torch.empty(count, device=self.device))]
        sets = [(x.clone(), out.clone()) for x, out in sets * num_sets(num_bytes)]
        times = {
            name: self.time(run, sets).median_s
            for name, run in {"triton": copy_triton, "cuda": lambda x, out: out.copy_(x)}.items()
        }
        how = min(times, key=lambda name: times[name])
        return CopyPoint(num_bytes, times[how], how)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.float16)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def clocks() -> dict[str, str]:
    """What nvidia-smi says of clocks (MHz), power (W) and temperature (degrees Celsius); empty where it does not."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [part.strip() for part in text.partition("\n")[0].split(",")]
    return dict(zip(_CLOCKS, values, strict=False))


def _triton_version() -> str:
    try:
        import triton
    except ModuleNotFoundError:
        return "none"
    return str(triton.__version__)
