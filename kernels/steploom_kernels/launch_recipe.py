"""How to launch an exported kernel with the CUDA driver alone: no Triton and no torch, Python 3.10 or later.

`python -m steploom_kernels.aot` writes a folder of cubins and its manifest, `kernels.json`. From there:

    manifest = read_manifest(folder)
    kernel = manifest.kernel("group_norm_silu_fp16", (9, 0))
    image = kernel.image(folder)              # for cuModuleLoadData; the function's name is kernel.entry
    launch = kernel.launch({"x": address, ..., "rows": 12})
    # cuLaunchKernelEx: launch.grid, launch.threads, launch.shared_bytes, and launch.address as kernelParams
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import operator
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steploom_kernels.grid_expression import BadExpression, evaluate

MANIFEST = "kernels.json"
FORMAT = 1  # of the manifest; changes with the meaning of a field
ALIGNMENT = 16  # bytes for a pointer, a factor for an integer: what `Argument.aligned` promises
MAX_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)  # CUDA's
OPT_IN_SHARED_BYTES = 48 * 1024  # above this a function must be allowed its dynamic shared memory first

_INTEGERS: dict[str, type[ctypes._SimpleCData[int]]] = {
    "i1": ctypes.c_int8,
    "i8": ctypes.c_int8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "u8": ctypes.c_uint8,
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
}


class RecipeError(ValueError):
    """A kernel cannot be launched as asked."""


class UnreadableManifest(RecipeError):
    """No manifest, or not one of this program."""


class StaleManifest(RecipeError):
    """The manifest is of another format, or the kernels' source has changed since the export."""


class UnknownKernel(RecipeError):
    """No kernel of that name was exported, or none for that GPU."""


class DamagedImage(RecipeError):
    """A cubin is missing, truncated or not the one that was exported."""


class WrongArgument(RecipeError):
    """An argument is missing, unknown, of the wrong type, out of range or not aligned."""


@dataclass(frozen=True)
class Argument:
    """One parameter of a kernel."""

    name: str
    type: str  # "*fp16" and the like for a pointer, else "i32", "fp32", ...
    aligned: bool = False  # a multiple of 16: the address in bytes, or the value


@dataclass(frozen=True)
class File:
    """A file beside the manifest."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Launch:
    """What `cuLaunchKernelEx` takes. Keep it until the call returns: `address` points into it."""

    grid: tuple[int, int, int]
    threads: int  # a block, along x
    shared_bytes: int  # dynamic shared memory
    values: tuple[ctypes._SimpleCData[Any], ...]  # in the order of the kernel's parameters, the hidden ones last
    pointers: ctypes.Array[ctypes.c_void_p] = field(repr=False)  # to each of the values

    @property
    def address(self) -> int:
        """Of the array of pointers to the values: `kernelParams`."""
        return ctypes.addressof(self.pointers)


@dataclass(frozen=True)
class Kernel:
    """One kernel, compiled for one kind of GPU."""

    name: str  # of the variant: group_norm_silu_fp16
    target: str  # sm_90
    entry: str  # the function's symbol in the cubin
    cubin: File
    ptx: File
    ptx_version: str  # that a driver must know to compile the PTX; loading the cubin does not need it
    arguments: tuple[Argument, ...]  # in order
    hidden: tuple[str, ...]  # pointers that follow the arguments and are null here
    constants: Mapping[str, int | float | bool]  # compiled in
    grid: tuple[str, str, str]  # expressions over integer arguments, constants and sizes
    sizes: tuple[str, ...]  # whole numbers that the grid alone needs: given beside the arguments
    threads: int
    shared_bytes: int
    registers: int | None  # a thread; None where the export could not tell
    spilled_bytes: int | None  # of each thread's stack; None likewise

    @property
    def needs_shared_opt_in(self) -> bool:
        """`cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)` must come before the first launch."""
        return self.shared_bytes > OPT_IN_SHARED_BYTES

    def image(self, folder: Path) -> bytes:
        """The cubin's bytes, checked.

        Raises:
            DamagedImage: the file is missing, truncated or not the one that was exported.
        """
        try:
            data = (Path(folder) / self.cubin.name).read_bytes()
        except OSError as error:
            raise DamagedImage(f"{self.cubin.name}: {error.strerror}") from None
        if len(data) != self.cubin.num_bytes:
            raise DamagedImage(f"{self.cubin.name}: {len(data)} bytes, exported were {self.cubin.num_bytes}")
        if hashlib.sha256(data).hexdigest() != self.cubin.sha256:
            raise DamagedImage(f"{self.cubin.name}: not the file that was exported (its SHA-256 differs)")
        return data

    def launch(self, values: Mapping[str, Any]) -> Launch:
        """Grid and parameters for these arguments.

        Args:
            values: by name, of each argument and size: pointers as device addresses (None is null), numbers as such.

        Raises:
            WrongArgument: missing, unknown, of the wrong type, out of range or not aligned; or the grid is empty or
                too large.
        """
        self._check_names(values)
        packed = [_pack(argument, values[argument.name]) for argument in self.arguments]
        packed += [ctypes.c_void_p(None) for _ in self.hidden]
        pointers = (ctypes.c_void_p * len(packed))(*map(ctypes.addressof, packed))
        return Launch(self._grid(values), self.threads, self.shared_bytes, tuple(packed), pointers)

    def _check_names(self, values: Mapping[str, Any]) -> None:
        wanted = [*(argument.name for argument in self.arguments), *self.sizes]
        missing = [name for name in wanted if name not in values]
        unknown = [name for name in values if name not in wanted]
        if missing or unknown:
            raise WrongArgument(
                f"{self.name} takes {', '.join(wanted)};"
                f" missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )

    def _grid(self, values: Mapping[str, Any]) -> tuple[int, int, int]:
        known = {**values, **self.constants}
        try:
            x, y, z = (evaluate(expression, known) for expression in self.grid)
        except BadExpression as error:
            raise WrongArgument(f"{self.name}: grid {error}") from None
        if not all(1 <= size <= most for size, most in zip((x, y, z), MAX_GRID)):  # noqa: B905 - both have three
            raise WrongArgument(f"{self.name}: a grid of {x} x {y} x {z} blocks cannot be launched")
        return x, y, z


@dataclass(frozen=True)
class Manifest:
    """What one export holds."""

    triton: str  # version that compiled
    sources: Mapping[str, str]  # SHA-256 of the files that the kernels were compiled from, relative to the package
    kernels: tuple[Kernel, ...]

    def kernel(self, name: str, capability: tuple[int, int]) -> Kernel:
        """The kernel of that name for a GPU of this compute capability, as (9, 0).

        A cubin runs on its own capability. Those of 8.x, which use nothing of one chip alone, run on later chips of
        that generation too: the nearest is taken.

        Raises:
            UnknownKernel: no such name, or not for this GPU.
        """
        named = [kernel for kernel in self.kernels if kernel.name == name]
        if not named:
            known = ", ".join(sorted({kernel.name for kernel in self.kernels}))
            raise UnknownKernel(f"no kernel {name} was exported; there are {known or 'none'}")
        fitting = [kernel for kernel in named if _runs_on(capability_of(kernel.target), capability)]
        if not fitting:
            targets = ", ".join(kernel.target for kernel in named)
            raise UnknownKernel(f"{name} was exported for {targets}, not for sm_{capability[0]}{capability[1]}")
        return max(fitting, key=lambda kernel: capability_of(kernel.target))

    def to_json(self) -> str:
        """The text of `kernels.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def read_manifest(folder: Path, sources: Path | None = Path(__file__).parent) -> Manifest:
    """The manifest of an exported folder.

    Args:
        folder: where the export went.
        sources: the package's folder, whose files are held against those of the export; None: not held.

    Raises:
        UnreadableManifest: there is none, or it is not one of ours.
        StaleManifest: of another format, or a kernel's source has changed since.
    """
    path = Path(folder) / MANIFEST
    try:
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise UnreadableManifest(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UnreadableManifest(f"{path}: {error}") from None
    if not isinstance(table, dict) or "format" not in table:
        raise UnreadableManifest(f"{path}: not a manifest of kernels")
    if table["format"] != FORMAT:
        raise StaleManifest(f"{path}: format {table['format']}, this program reads {FORMAT}: export the kernels anew")
    try:
        manifest = _manifest(table)
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableManifest(f"{path}: not a manifest of kernels ({type(error).__name__}: {error})") from None
    changed = _changed(manifest, sources) if sources else []
    if changed:
        raise StaleManifest(f"{path}: {', '.join(changed)} changed since the export: export the kernels anew")
    return manifest


def capability_of(target: str) -> tuple[int, int]:
    """(9, 0) for "sm_90".

    Raises:
        ValueError: no such form.
    """
    digits = target[3:] if target.startswith("sm_") else ""
    if not digits.isascii() or not digits.isdigit() or len(digits) < 2:
        raise ValueError(f"{target!r} is no target; one is written sm_90")
    return int(digits[:-1]), int(digits[-1])


def _runs_on(compiled: tuple[int, int], device: tuple[int, int]) -> bool:
    return compiled == device or (compiled[0] == device[0] == 8 and compiled[1] <= device[1])


def _manifest(table: Mapping[str, Any]) -> Manifest:
    kernels = tuple(_kernel(entry) for entry in table["kernels"])
    return Manifest(table["triton"], dict(table["sources"]), kernels)


def _kernel(entry: Mapping[str, Any]) -> Kernel:
    capability_of(entry["target"])
    x, y, z = entry["grid"]
    parts = {
        "cubin": File(**entry["cubin"]),
        "ptx": File(**entry["ptx"]),
        "arguments": tuple(Argument(**argument) for argument in entry["arguments"]),
        "hidden": tuple(entry["hidden"]),
        "grid": (x, y, z),
        "sizes": tuple(entry["sizes"]),
    }
    return Kernel(**{**entry, **parts})


def _changed(manifest: Manifest, sources: Path) -> list[str]:
    present = [(sources / name, digest) for name, digest in manifest.sources.items() if (sources / name).exists()]
    return [path.name for path, digest in present if hashlib.sha256(path.read_bytes()).hexdigest() != digest]


def _pack(argument: Argument, value: Any) -> ctypes._SimpleCData[Any]:
    try:
        if argument.type.startswith("*"):
            return _pointer(argument, value)
        if argument.type in _INTEGERS:
            return _integer(argument, value)
        return _floating(argument, value)
    except (TypeError, OverflowError, struct.error) as error:
        raise WrongArgument(f"{argument.name}: {value!r} is no {argument.type}: {error}") from None


def _pointer(argument: Argument, value: Any) -> ctypes.c_void_p:
    address = 0 if value is None else operator.index(value)
    if not 0 <= address < 2**64:
        raise WrongArgument(f"{argument.name}: {address} is no address")
    _check_alignment(argument, address)
    return ctypes.c_void_p(address)


def _integer(argument: Argument, value: Any) -> ctypes._SimpleCData[int]:
    number = operator.index(value)
    bits = int(argument.type[1:])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if argument.type[0] == "i" else (0, 2**bits - 1)
    if argument.type == "i1":
        low, high = 0, 1
    if not low <= number <= high:
        raise WrongArgument(f"{argument.name}: {number} is not in {low} to {high}, the range of {argument.type}")
    _check_alignment(argument, number)
    return _INTEGERS[argument.type](number)


def _check_alignment(argument: Argument, number: int) -> None:
    if argument.aligned and number % ALIGNMENT:
        raise WrongArgument(
            f"{argument.name}: {number} is not a multiple of {ALIGNMENT}, as the kernel was compiled for"
        )


def _floating(argument: Argument, value: Any) -> ctypes._SimpleCData[Any]:
    number: float = struct.unpack("d", struct.pack("d", value))[0]  # float() would read text too
    if argument.type == "fp64":
        return ctypes.c_double(number)
    if argument.type == "fp16":
        return ctypes.c_uint16(struct.unpack("H", struct.pack("e", number))[0])
    single = ctypes.c_float(number)
    if math.isinf(single.value) and not math.isinf(number):
        raise OverflowError("too large")
    if argument.type == "fp32":
        return single
    if argument.type == "bf16":  # cut, not rounded, as Triton's own launcher does
        return ctypes.c_uint16(struct.unpack("I", struct.pack("f", single.value))[0] >> 16)
    raise TypeError("unknown type")
