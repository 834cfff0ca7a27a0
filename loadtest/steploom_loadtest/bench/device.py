"""The device to be measured: whether it is there, and what it is called."""

from __future__ import annotations

import json
import subprocess
import sys

from steploom_loadtest.bench.outcome import CannotRun

_PROBE_S = 120.0

# In a process of its own: a load generator holds no context on the device.
_PROBE = """
import json, sys, torch
device = torch.device(sys.argv[1])
torch.ones(1, device=device).sum().item()
is_cuda = device.type == "cuda"
found = {"device": torch.cuda.get_device_name(device) if is_cuda else str(device), "torch": torch.__version__}
print(json.dumps(found | ({"cuda": torch.version.cuda} if is_cuda else {})))
"""


def describe(device: str) -> dict[str, str]:
    """Its name, and the versions of driver, torch and CUDA, as far as it has any.

    Raises:
        CannotRun: torch cannot use it.
    """
    command = (sys.executable, "-P", "-c", _PROBE, device)
    try:
        probe = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"torch has not answered for device {device!r} within {_PROBE_S:g} s") from None
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CannotRun(f"torch cannot use device {device!r} here: {reason}")
    found: dict[str, str] = json.loads(probe.stdout.splitlines()[-1])
    return found | ({"driver": _driver()} if "cuda" in found else {})


def _driver() -> str:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "unknown: nvidia-smi does not answer"
    return next(iter(said.stdout.split()), "unknown")
