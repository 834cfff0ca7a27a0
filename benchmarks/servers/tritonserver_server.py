"""The model behind Triton Inference Server's own Python backend, by the binary that pytriton's wheel brings."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytriton
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
    """Writes the model repository and becomes tritonserver."""
    said = wanted()
    here, triton = Path(__file__).parent, Path(pytriton.__file__).parent / "tritonserver"
    folder = Path(said["directory"]) / "models" / "identity"
    (folder / "1").mkdir(parents=True)
    shutil.copy(here / "triton_model.py", folder / "1" / "model.py")
    shutil.copy(here / "bench_model.py", folder / "1")
    (folder / "config.pbtxt").write_text(
        _CONFIG.format(delay_us=int(1000 * said["delay_ms"]), **{key: said[key] for key in ("max_batch", "instances")})
    )
    stub = triton / "python_backend_stubs" / f"{sysconfig.get_python_version()}" / "triton_python_backend_stub"
    backends = Path(said["directory"]) / "backends"
    shutil.copytree(triton / "backends", backends)
    if stub.exists():  # of this very Python; the one beside the backend may be of another
        shutil.copy(stub, backends / "python" / stub.name)
    site = Path(sysconfig.get_path("purelib"))
    # those that the wheel brings, and libpython
    libraries = [str(site / "nvidia_pytriton.libs"), str(triton / "external_libs"), sysconfig.get_config_var("LIBDIR")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")])}
    http, metrics = said["more_ports"]
    command = [
        *(
            str(triton / "bin" / "tritonserver"),
            f"--model-repository={folder.parent}",
            f"--backend-directory={backends}",
        ),
        *(f"--grpc-port={said['port']}", f"--http-port={http}", f"--metrics-port={metrics}"),
        *("--grpc-address=127.0.0.1", "--http-address=127.0.0.1", "--allow-metrics=false", "--log-info=false"),
    ]
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
