"""An environment for each peer, git-ignored in `.venv-peer-NAME/`: their packages want other versions than ours"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PINS = Path(__file__).resolve().parents[1] / "pins"  # NAME.txt: what pip is to install, every version said
_PIP_S = 1200


class Missing(Exception):
    """Something cannot be had here."""


def python_of(name: str) -> Path:
    """The interpreter of an environment; of our own where there is no name."""
    return Path(sys.executable) if not name else _home(name) / "bin" / "python"


def prepare(name: str) -> None:
    """Makes an environment, unless the one that is there has just these packages.

    Raises:
        Missing: packages cannot be installed.
    """
    if not name:
        return
    home = _home(name)
    wanted, complete = pins_of(name).read_text(), home / "complete"  # written last
    if complete.exists() and complete.read_text() == wanted:
        return
    print(f"installing {home.name}; the first time takes minutes", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(python_of(name)), "--retries", "1", "--timeout", "30"]
    try:
        subprocess.run(
            [*pip, "install", "--quiet", "-r", str(pins_of(name))],
            capture_output=True,
            text=True,
            timeout=_PIP_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise Missing(f"{name}: pip failed: {error.stderr.strip().splitlines()[-1:]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{name}: pip failed: {type(error).__name__}") from None
    complete.write_text(wanted)


def pins_of(name: str) -> Path:
    """The file that says what belongs into an environment."""
    return _PINS / f"{name}.txt"


def version_of(package: str, name: str) -> str:
    """Of a package, as the pins of an environment have it."""
    for line in pins_of(name).read_text().splitlines():
        wanted, _, version = line.partition("==")
        if wanted.partition("[")[0].strip().lower() == package:
            return version.strip()
    raise ValueError(f"{package} has no version in {pins_of(name).name}")


def _home(name: str) -> Path:
    return ROOT / f".venv-peer-{name}"
