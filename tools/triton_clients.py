"""Makes an environment of Triton's own clients below build/, for the tests that hold the gateway against them.

It is apart from ours because the clients want an older protobuf. perf_analyzer comes within the package of the Python
client, and wants two libraries beside it: CUDA's runtime, a package too, and libb64, which Debian and Ubuntu have.

Prints what there is as JSON: `python`, `perf_analyzer` with the `library_path` that it needs, or `missing`, in words.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "tritonclient==2.51.0",  # the last but few whose perf_analyzer runs on glibc 2.36
    "protobuf<7",
    "grpcio>=1.60",
    "numpy<2",
    "packaging",
    "setuptools<80",  # with pkg_resources, by which the client finds its shared-memory library
    "nvidia-cuda-runtime-cu12>=12.4",
)
HOME = ROOT / "build" / "triton-clients-2.51.0"

_PIP_S = 300  # a registry that does not answer is as good as none
_LIBRARY = "libb64-0d"


class Missing(Exception):
    """Something cannot be had here."""


def prepare(home: Path) -> None:
    """Makes the environment, unless the one that is there has these packages.

    Raises:
        Missing: packages cannot be installed.
    """
    wanted, complete = "\n".join(PACKAGES), home / "complete"  # written last
    if complete.exists() and complete.read_text() == wanted:
        return
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    venv.create(home / "venv", with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(_python(home)), "--retries", "1", "--timeout", "15"]
    _run([*pip, "install", "--quiet", *PACKAGES])
    complete.write_text(wanted)


def find_library(home: Path) -> str:
    """The folders in which perf_analyzer finds its libraries.

    Raises:
        Missing: libb64 cannot be had, or perf_analyzer does not run.
    """
    folders = [*home.glob("venv/lib/python*/site-packages/nvidia/cuda_runtime/lib"), home / "lib"]
    path = os.pathsep.join(map(str, folders))
    if not _runs(home, path):
        _fetch_library(home)
        if not _runs(home, path):
            raise Missing(f"perf_analyzer does not run on this machine, even with {_LIBRARY}")
    return path


def _fetch_library(home: Path) -> None:
    """Unpacks Debian's package; nothing is installed."""
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if not apt or not dpkg:
        raise Missing(f"no apt-get here to fetch {_LIBRARY} with")
    (home / "deb").mkdir(exist_ok=True)
    try:
        _run([apt, "download", "--quiet", _LIBRARY], home / "deb")
    except Missing:  # the lists of packages are missing or too old
        _run([apt, "update", "--quiet"])
        _run([apt, "download", "--quiet", _LIBRARY], home / "deb")
    for package in (home / "deb").glob(f"{_LIBRARY}_*.deb"):
        _run([dpkg, "-x", str(package), str(home / "deb" / "unpacked")])
    (home / "lib").mkdir(exist_ok=True)
    for file in (home / "deb" / "unpacked").rglob("libb64.so*"):
        shutil.copy(file, home / "lib" / file.name)


def _runs(home: Path, library_path: str) -> bool:
    command = [str(_perf_analyzer(home)), "--version"]
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path}
    try:
        return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: Sequence[str], folder: Path = ROOT) -> None:
    try:
        subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PIP_S, check=True)
    except subprocess.CalledProcessError as error:
        raise Missing(f"{Path(command[0]).name} failed: {error.stderr.strip().splitlines()[-1:]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{Path(command[0]).name} failed: {type(error).__name__}") from None


def _python(home: Path) -> Path:
    return home / "venv" / "bin" / "python"


def _perf_analyzer(home: Path) -> Path:
    return home / "venv" / "bin" / "perf_analyzer"


def main() -> None:
    """Entry point."""
    found: dict[str, str] = {}
    try:
        prepare(HOME)
        found["python"] = str(_python(HOME))
        found["library_path"] = find_library(HOME)
        found["perf_analyzer"] = str(_perf_analyzer(HOME))
    except Missing as error:
        found["missing"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
