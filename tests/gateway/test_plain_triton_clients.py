"""Triton's own clients, unmodified, with the example models of a real host: the Python client, and perf_analyzer.

As in test_triton_clients, they have an environment of their own; where that cannot be made, these tests are skipped.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from served_plain import opened_plain

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "examples" / "plain-models"

Found = Mapping[str, str]


@pytest.fixture(scope="session")
def clients() -> Found:
    """What there is of the environment; see tools/triton_clients.py."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "triton_clients.py")],
        capture_output=True, text=True, timeout=1200, check=True,
    )  # fmt: skip
    found: Found = json.loads(done.stdout)
    if "python" not in found:
        pytest.skip(f"no environment of Triton's clients: {found['missing']}")
    return found


async def test_the_python_client(clients: Found, tmp_path: Path) -> None:
    async with opened_plain(tmp_path, num_hosts=0, repository=MODELS) as house:
        process = await asyncio.create_subprocess_exec(
            clients["python"], str(ROOT / "tests" / "support" / "triton_plain_calls.py"),
            f"127.0.0.1:{house.gateway.port}", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0
        got = json.loads(out)
    assert got["numbers"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert got["id"] == "r1"
    assert got["strings"] == [["one", "zwei"], ["", "넷"]]
    assert got["whole"] == [[-(2**63), 2**63 - 1]]
    wrong_type, too_many = got["errors"]
    assert wrong_type == "StatusCode.INVALID_ARGUMENT inputs.INPUT0: is FP64, must be FP32"
    assert "has 65 rows, must have 1 to 64" in too_many
    assert got["ready"]
    assert got["metadata"]["inputs"] == [{"name": "INPUT0", "datatype": "FP32", "shape": ["-1", "-1"]}]
    assert got["config"]["config"]["max_batch_size"] == 64
    assert {row["name"]: row["state"] for row in got["index"]["models"]} == {
        "identity": "READY", "identity_bytes": "READY", "identity_int64": "READY"
    }  # fmt: skip
    (statistics,) = got["statistics"]["model_stats"]
    assert (statistics["inference_count"], statistics["execution_count"]) == ("3", "1")
    assert statistics["batch_stats"][0]["batch_size"] == "3"
    assert got["streamed"] == [[str(number), [[number, number]]] for number in range(3)]
    assert got["right"] == 50


LOADS = {
    "closed": ["--concurrency-range", "4"],
    "poisson": ["--request-rate-range", "50", "--request-distribution", "poisson"],
    "stream": ["--concurrency-range", "2", "--streaming", "--async"],
    "batch": ["--concurrency-range", "2", "-b", "3"],
}


@pytest.mark.parametrize("load", LOADS)
async def test_perf_analyzer(clients: Found, tmp_path: Path, load: str) -> None:
    if "perf_analyzer" not in clients:
        pytest.skip(f"no perf_analyzer: {clients['missing']}")
    async with opened_plain(tmp_path, num_hosts=0, repository=MODELS) as house:
        process = await asyncio.create_subprocess_exec(
            clients["perf_analyzer"], "-m", "identity", "-i", "grpc", "-u", f"127.0.0.1:{house.gateway.port}",
            "--shape", "INPUT0:16", "-f", str(tmp_path / "report.csv"),
            "--request-count", "60", "--measurement-interval", "1000", "--verbose-csv", *LOADS[load],
            env={**os.environ, "LD_LIBRARY_PATH": clients["library_path"]},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        assert await house.is_clean()
    (row,) = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
    assert float(row["Server Compute Infer"]) >= 0
