"""`python -m steploom_engine_worker.plain` as a process: exit codes, signals, health, and what it does not load."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from plain_house import EXAMPLES, ONE_INPUT, item, numbers, write_model

from steploom_protos.worker.v1 import plain_pb2 as pb
from steploom_protos.worker.v1 import plain_pb2_grpc

Start = Callable[..., subprocess.Popen[str]]
PATIENCE_S = 120.0  # for a process to start, or to end
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes = []

    def begin(repository: Path, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "steploom_engine_worker.plain", "--repository", str(repository)]
        command += ["--address", f"unix:{tmp_path}/m.sock", *arguments]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        if process.stderr is not None and not process.stderr.closed:
            sys.stderr.write(process.communicate()[1])  # shown where a test has failed


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{tmp_path}/m.sock", [("grpc.max_reconnect_backoff_ms", 200)]) as opened:
        yield opened


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, errors


def is_serving(channel: grpc.Channel) -> bool:
    request = health_pb2.HealthCheckRequest(service="steploom.worker.v1.ModelHost")
    stub = health_pb2_grpc.HealthStub(channel)
    return bool(stub.Check(request, wait_for_ready=True, timeout=PATIENCE_S).status == SERVING)


def until_serving(channel: grpc.Channel) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_serving(channel):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run(channel: grpc.Channel, model: str, request: pb.Item) -> pb.BatchDone:
    batch = pb.Batch(batch_id=1, model=model, items=[request])
    stub = plain_pb2_grpc.ModelHostStub(channel)
    answers = stub.Execute(iter([pb.ExecuteBatches(batches=[batch])]), wait_for_ready=True, timeout=PATIENCE_S)
    return next(iter(answers)).done[0]


def test_a_host_of_python_classes_loads_no_torch_and_ends_in_order(start: Start, channel: grpc.Channel) -> None:
    process = start(EXAMPLES / "plain-models")
    until_serving(channel)
    assert numbers(run(channel, "identity", item([[1, 2]])).items[0]) == [[1, 2]]
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "numpy" in maps
    assert "libtorch" not in maps
    process.send_signal(signal.SIGTERM)
    code, errors = end(process)
    assert code == 0, errors
    assert "INFO steploom_engine_worker.plain.host: ready: LoadedModel(identity, generation=1, versions=(1,))" in errors


def gated(repository: Path, folder: Path) -> None:
    """A model that says when it has begun, and waits until it may go on."""
    code = f"""
        import time
        from pathlib import Path
        class Model:
            def __init__(self, config, folder): pass
            def close(self): Path("{folder}/closed").touch()
            def infer(self, inputs, parameters):
                Path("{folder}/begun").touch()
                while not Path("{folder}/go").exists():
                    time.sleep(0.01)
                return {{"y": inputs["x"]}}
    """
    write_model(repository, "gated", code)


def begin(channel: grpc.Channel, folder: Path, process: subprocess.Popen[str]) -> Iterator[pb.ExecutedBatches]:
    """A batch of the gated model that runs, once the process has been asked to end; returns its answers."""
    batch = pb.Batch(batch_id=1, model="gated", items=[item([[5]])])
    stub = plain_pb2_grpc.ModelHostStub(channel)
    answers = stub.Execute(iter([pb.ExecuteBatches(batches=[batch])]), timeout=PATIENCE_S)
    while not (folder / "begun").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    for description in stub.Describe(pb.DescribeRequest(), timeout=PATIENCE_S):
        if description.is_draining:
            break
    return iter(answers)


def test_sigterm_lets_batches_end(start: Start, channel: grpc.Channel, tmp_path: Path) -> None:
    gated(tmp_path / "repository", tmp_path)
    process = start(tmp_path / "repository")
    until_serving(channel)
    answers = begin(channel, tmp_path, process)
    (tmp_path / "go").touch()
    assert numbers(next(answers).done[0].items[0]) == [[5]]
    assert end(process)[0] == 0
    assert (tmp_path / "closed").exists()


def test_a_second_signal_waits_for_nothing(start: Start, channel: grpc.Channel, tmp_path: Path) -> None:
    gated(tmp_path / "repository", tmp_path)
    process = start(tmp_path / "repository", "--drain-s", "3600")
    until_serving(channel)
    begin(channel, tmp_path, process)
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130


def test_a_model_that_hangs_while_it_loads_hinders_no_other(
    start: Start, channel: grpc.Channel, tmp_path: Path
) -> None:
    code = """
        import time
        class Model:
            def __init__(self, config, folder): time.sleep(3600)
            def infer(self, inputs, parameters): pass
    """
    write_model(tmp_path / "repository", "hangs", code)
    write_model(tmp_path / "repository", "double")
    process = start(tmp_path / "repository")
    while run(channel, "double", item([[1]])).HasField("error"):
        time.sleep(0.05)
    assert not is_serving(channel)
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 0


def test_a_model_that_cannot_be_loaded_is_no_reason_to_end(start: Start, channel: grpc.Channel, tmp_path: Path) -> None:
    write_model(tmp_path / "repository", "broken", "raise RuntimeError('no weights')")
    process = start(tmp_path / "repository")
    until_serving(channel)
    entries = plain_pb2_grpc.ModelHostStub(channel).Index(pb.IndexRequest()).entries
    assert [(entry.name, entry.reason) for entry in entries] == [("broken", "RuntimeError: no weights")]
    process.send_signal(signal.SIGTERM)
    assert (
        "ERROR steploom_engine_worker.plain.host: model broken cannot be loaded: RuntimeError: no weights"
        in end(process)[1]
    )


def test_a_model_that_ends_the_process_is_seen(start: Start, channel: grpc.Channel, tmp_path: Path) -> None:
    code = """
        import os
        class Model:
            def __init__(self, config, folder): pass
            def infer(self, inputs, parameters): os._exit(41)
    """
    write_model(tmp_path / "repository", "ends", code, ONE_INPUT)
    process = start(tmp_path / "repository")
    until_serving(channel)
    with pytest.raises(grpc.RpcError):
        run(channel, "ends", item([[1]]))
    assert end(process)[0] == 41


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "/nowhere/steploom.toml"], "error: /nowhere/steploom.toml: cannot be read"),
        (["--drain-s", "-1"], "error: drain_s: is -1.0, must be at least 0 and at most 3600"),
        (["--threads", "-1"], "error: threads: is -1, must be at least 0 and at most 1024"),
        (["--repository", "/nowhere"], "error: [Errno 20] is not a directory: '/nowhere'"),
        (["--address", "unix:/proc/m.sock"], "error: cannot listen on unix:/proc/m.sock: "),
        (["--address", "8.8.8.8:1"], "error: internal.cert: is empty, and 8.8.8.8:1 is on a network"),
    ],
)
def test_a_usage_error_is_one_line_and_code_2(start: Start, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, errors = end(start(tmp_path, *arguments))
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
