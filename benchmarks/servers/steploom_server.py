"""The model behind Steploom: a folder of plain models, served without a pipeline of diffusion beside it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from bench_model import wanted

_CONFIG = """
name: "identity"
backend: "python"
max_batch_size: {max_batch}
input [ {{ name: "INPUT0", data_type: TYPE_UINT8, dims: [ -1 ] }} ]
output [ {{ name: "OUTPUT0", data_type: TYPE_UINT8, dims: [ -1 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}
instance_group [ {{ kind: KIND_CPU, count: {instances} }} ]
"""


def main() -> None:
    """Writes the model repository and becomes `steploom up`."""
    said = wanted()
    here, directory = Path(__file__).parent, Path(said["directory"])
    folder = directory / "models" / "identity"
    (folder / "1").mkdir(parents=True)
    shutil.copy(here / "steploom_model.py", folder / "1" / "model.py")
    shutil.copy(here / "bench_model.py", folder / "1")
    (folder / "config.pbtxt").write_text(
        _CONFIG.format(delay_us=int(1000 * said["delay_ms"]), **{key: said[key] for key in ("max_batch", "instances")})
    )
    queue = "batcher" if said["options"].get("shared queue") else "gateway"
    config = directory / "steploom.toml"
    config.write_text(f'[plain]\nqueue = "{queue}"\n')
    command = [
        *(sys.executable, "-P", "-m", "steploom", "up", "--config", str(config)),
        *("--models", str(folder.parent), "--workers", "0", "--runtime-dir", str(directory / "run")),
        *("--listen", f"127.0.0.1:{said['port']}", "--metrics-listen", ""),
    ]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
