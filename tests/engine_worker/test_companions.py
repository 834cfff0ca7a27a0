"""What lies beside engines is written once, and again where it no longer fits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steploom_engine_worker.export.companions import write_companions
from steploom_engine_worker.model import load_model
from steploom_engine_worker.tensorrt.host import read_host
from steploom_engine_worker.tensorrt.kernels import kernel_names
from steploom_kernels.aot import ExportError
from steploom_kernels.launch_recipe import read_manifest

pytest.importorskip("triton")

H100 = (9, 0)
# In a process of its own: in this one kernels may be interpreted.
WRITE = """
import sys
from pathlib import Path
from steploom_engine_worker.export.companions import write_companions
from steploom_engine_worker.model import load_model
folder = Path(sys.argv[1])
model = load_model(Path(sys.argv[2]))
for damage in (None, None, "step_slots_fp16.sm_90.cubin"):
    if damage is not None:
        (folder / "kernels" / damage).write_bytes(b"cut off")
    print(write_companions(folder, folder / "kernels", model, "fp16", (9, 0)))
"""


def test_kernels_are_compiled_where_they_are_missing_or_damaged(tiny_model_dir: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-c", WRITE, str(tmp_path), str(tiny_model_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["True", "False", "True"], done.stderr
    manifest = read_manifest(tmp_path / "kernels")
    assert {kernel.name for kernel in manifest.kernels} == set(kernel_names("fp16"))
    for name in kernel_names("fp16"):
        assert manifest.kernel(name, H100).image(tmp_path / "kernels")
    assert read_host(tmp_path).tokens(["a hat"]).shape == (1, 16)


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="kernels are not interpreted where there is a GPU")
def test_interpreted_kernels_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="TRITON_INTERPRET is set"):
        write_companions(tmp_path, tmp_path / "kernels", load_model(tiny_model_dir), "fp16", H100)
