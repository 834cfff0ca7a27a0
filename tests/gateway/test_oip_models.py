"""What the Open Inference Protocol says of the server, of its models, and of what they have done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from gateway_house import House, eventually, opened, request, status_of
from oip_requests import infer_request, stub_of

from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import model_config_pb2 as config_pb

Status = grpc.StatusCode
NAMES = ["fake", "fake.encode", "fake.denoise", "fake.decode"]


async def is_ready(house: House, name: str = "fake", version: str = "") -> bool:
    return (await stub_of(house).ModelReady(pb.ModelReadyRequest(name=name, version=version))).ready


async def test_live_and_ready(house: House) -> None:
    stub = stub_of(house)
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert [await is_ready(house, name) for name in (*NAMES, "", "other")] == [True] * 4 + [False] * 2
    assert [await is_ready(house, version=version) for version in ("1", "2")] == [True, False]
    house.gateway.service.drain()
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert not await is_ready(house)


async def test_not_ready_while_the_batcher_is_away(house: House) -> None:
    await house.batcher.stop()
    assert await eventually(lambda: not house.gateway.batcher.is_serving)
    assert not (await stub_of(house).ServerReady(pb.ServerReadyRequest())).ready
    assert not await is_ready(house)
    index = await stub_of(house).RepositoryIndex(pb.RepositoryIndexRequest())
    assert {(row.state, bool(row.reason)) for row in index.models} == {("UNAVAILABLE", True)}
    assert not (await stub_of(house).RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models


async def test_before_any_worker_there_is_no_model(tmp_path: Path) -> None:
    async with opened(tmp_path, has_worker=False) as house:
        assert not await is_ready(house)
        assert not (await stub_of(house).RepositoryIndex(pb.RepositoryIndexRequest())).models
        for call in (
            stub_of(house).ModelMetadata(pb.ModelMetadataRequest(name="fake")),
            stub_of(house).ModelStatistics(pb.ModelStatisticsRequest()),
            stub_of(house).ModelInfer(infer_request()),
        ):
            assert (await status_of(call)).code() is Status.UNAVAILABLE


async def test_metadata(house: House) -> None:
    server = await stub_of(house).ServerMetadata(pb.ServerMetadataRequest())
    assert (server.name, server.version[:1].isdigit()) == ("steploom", True)
    assert "statistics" in server.extensions
    assert "system_shared_memory" not in server.extensions
    model = await stub_of(house).ModelMetadata(pb.ModelMetadataRequest(name="fake"))
    assert (model.name, list(model.versions), model.platform) == ("fake", ["1"], "ensemble")
    assert [(item.name, item.datatype, list(item.shape)) for item in model.inputs] == [
        ("image", "BYTES", [1]), ("instruction", "BYTES", [1])
    ]  # fmt: skip
    assert [(item.name, item.datatype, list(item.shape)) for item in model.outputs] == [("edited_image", "BYTES", [1])]


async def test_the_configuration_is_an_ensemble_whose_tensors_connect(house: House) -> None:
    whole = (await stub_of(house).ModelConfig(pb.ModelConfigRequest(name="fake"))).config
    assert (whole.platform, whole.WhichOneof("scheduling_choice")) == ("ensemble", "ensemble_scheduling")
    assert not whole.model_transaction_policy.decoupled
    known = {tensor.name for tensor in whole.input}
    made: list[str] = []
    for step in whole.ensemble_scheduling.step:
        own = (await stub_of(house).ModelConfig(pb.ModelConfigRequest(name=step.model_name, version="1"))).config
        assert set(step.input_map) == {tensor.name for tensor in own.input}
        assert set(step.output_map) == {tensor.name for tensor in own.output}
        assert set(step.input_map.values()) <= known
        made += step.output_map.values()
        known |= set(step.output_map.values())
    assert [step.model_name for step in whole.ensemble_scheduling.step] == NAMES[1:]
    assert len(made) == len({*made}) == len({*made} - {tensor.name for tensor in whole.input})
    assert {tensor.name for tensor in whole.output} <= set(made)
    facts = {name: value.string_value for name, value in whole.parameters.items()}
    assert (facts["tiers"], facts["adapters"], facts["max_steps"], facts["width"]) == ("pro,free", "turbo", "50", "32")
    decode = (await stub_of(house).ModelConfig(pb.ModelConfigRequest(name="fake.decode"))).config
    assert [(tensor.data_type, list(tensor.dims)) for tensor in decode.input] == [(config_pb.TYPE_FP32, [4, 4, 4])]


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("fake", "2"), ("fake.", ""), ("", "")])
async def test_unknown_models(house: House, name: str, version: str) -> None:
    stub = stub_of(house)
    assert (
        await status_of(stub.ModelConfig(pb.ModelConfigRequest(name=name, version=version)))
    ).code() is Status.NOT_FOUND
    asked = pb.ModelMetadataRequest(name=name, version=version)
    assert (await status_of(stub.ModelMetadata(asked))).code() is Status.NOT_FOUND
    if name:
        error = await status_of(stub.ModelStatistics(pb.ModelStatisticsRequest(name=name, version=version)))
        assert error.code() is Status.NOT_FOUND


async def statistics(house: House, name: str = "fake") -> pb.ModelStatistics:
    (stats,) = (await stub_of(house).ModelStatistics(pb.ModelStatisticsRequest(name=name))).model_stats
    return stats


async def test_statistics_count_edits_of_every_protocol(house: House) -> None:
    before = await statistics(house)
    assert (before.inference_count, before.last_inference) == (0, 0)
    await stub_of(house).ModelInfer(infer_request(steps=3))
    await house.stub.Edit(request(steps=4))
    await status_of(stub_of(house).ModelInfer(infer_request(steps=-1)))
    await status_of(house.stub.Edit(request(tier="gold")))
    stats = await statistics(house)
    assert (stats.name, stats.version, stats.inference_count, stats.execution_count) == ("fake", "1", 2, 2)
    seen = stats.inference_stats
    assert (seen.success.count, seen.fail.count) == (2, 2)
    assert {part.count for part in (seen.queue, seen.compute_input, seen.compute_infer, seen.compute_output)} == {2}
    # the fake tells 10 ms in the queue, and 20, 30 and 40 ms in its stages
    assert [seen.queue.ns, seen.compute_infer.ns] == pytest.approx([20e6, 180e6])
    assert min(seen.success.ns, seen.fail.ns, seen.compute_input.ns, seen.compute_output.ns) > 0
    assert seen.compute_input.ns + seen.compute_output.ns < seen.success.ns
    assert stats.last_inference > 1_600_000_000_000


async def test_statistics_of_the_steps(house: House) -> None:
    await stub_of(house).ModelInfer(infer_request(steps=3))
    every = (await stub_of(house).ModelStatistics(pb.ModelStatisticsRequest())).model_stats
    assert [stats.name for stats in every] == NAMES
    _, encode, denoise, decode = every
    # the fake runs each job alone: a tick a step, with three rows
    assert [(stats.inference_count, stats.execution_count) for stats in (encode, denoise, decode)] == [
        (1, 1),
        (9, 3),
        (1, 1),
    ]
    seen = [stats.inference_stats for stats in (encode, denoise, decode)]
    assert [part.compute_infer.ns for part in seen] == pytest.approx([20e6, 30e6, 40e6])
    assert [part.queue.ns for part in seen] == pytest.approx([10e6, 0, 0])
    assert [part.success.ns for part in seen] == pytest.approx([30e6, 30e6, 40e6])


async def test_statistics_are_there_while_the_batcher_is_away(house: House) -> None:
    await stub_of(house).ModelInfer(infer_request())
    await statistics(house)
    await house.batcher.stop()
    assert (await statistics(house)).inference_count == 1


async def test_repository(house: House) -> None:
    stub = stub_of(house)
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    names = [*NAMES, "fake.adapters.turbo"]
    assert [(row.name, row.version, row.state) for row in index.models] == [(name, "1", "READY") for name in names]
    for call, words in (
        (stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="a")), "there is one repository"),
        (stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="fake")), "gateway.remote_model_control"),
        (stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="fake")), "remote_model_control"),
    ):
        error = await status_of(call)
        assert error.code() is Status.UNIMPLEMENTED
        assert words in str(error.details())


async def test_memory_of_devices_is_refused(house: House) -> None:
    stub = stub_of(house)
    assert not (await stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest())).regions
    await stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
    asked = pb.CudaSharedMemoryRegisterRequest(name="a", raw_handle=b"x", byte_size=1)
    assert (await status_of(stub.CudaSharedMemoryRegister(asked))).code() is Status.UNIMPLEMENTED


async def test_traces_are_off(house: House) -> None:
    def asked(name: str, *values: str, model_name: str = "") -> pb.TraceSettingRequest:
        value = pb.TraceSettingRequest.SettingValue(value=values)
        return pb.TraceSettingRequest(settings={name: value}, model_name=model_name)

    stub = stub_of(house)
    for harmless in (
        pb.TraceSettingRequest(),
        pb.TraceSettingRequest(model_name="fake"),
        asked("trace_level"),
        asked("trace_level", "OFF"),
    ):
        answer = await stub.TraceSetting(harmless)
        assert {name: list(value.value) for name, value in answer.settings.items()} == {"trace_level": ["OFF"]}
    for refused in (asked("trace_level", "TIMESTAMPS"), asked("trace_rate", "1"), asked("trace_file", "/tmp/x")):
        assert (await status_of(stub.TraceSetting(refused))).code() is Status.UNIMPLEMENTED
    error = await status_of(stub.TraceSetting(pb.TraceSettingRequest(model_name="other")))
    assert error.code() is Status.NOT_FOUND


@pytest.fixture
def restored_levels() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("steploom_gateway", "steploom_common")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def log_request(**values: bool | int | str) -> pb.LogSettingsRequest:
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    return pb.LogSettingsRequest(
        settings={
            name: pb.LogSettingsRequest.SettingValue(**{kinds[type(value)]: value})  # type: ignore[arg-type]
            for name, value in values.items()
        }
    )


@pytest.mark.usefixtures("restored_levels")
async def test_log_settings_are_the_level_of_the_log(tmp_path: Path) -> None:
    logger = logging.getLogger("steploom_gateway.access")
    async with opened(tmp_path, remote_log_settings=True) as house:
        stub = stub_of(house)
        now = (await stub.LogSettings(pb.LogSettingsRequest())).settings
        assert (now["log_info"].bool_param, now["log_verbose_level"].uint32_param) == (True, 0)
        for settings, level in (
            ({"log_info": False}, logging.WARNING),
            ({"log_info": False, "log_warning": False}, logging.ERROR),
            ({"log_error": False}, logging.CRITICAL + 1),
            ({"log_info": True}, logging.INFO),
            ({"log_verbose_level": 1}, logging.DEBUG),
            ({"log_file": ""}, logging.DEBUG),
            ({"log_verbose_level": 0}, logging.INFO),
        ):
            now = (await stub.LogSettings(log_request(**settings))).settings
            assert logger.getEffectiveLevel() == level, settings
            assert now["log_info"].bool_param is (level <= logging.INFO)
            assert now["log_error"].bool_param is (level <= logging.ERROR)
        for bad in ({"log_info": 1}, {"log_verbose_level": True}, {"log_file": "/etc/x"}, {"colour": True}):
            error = await status_of(stub.LogSettings(log_request(**bad)))
            assert error.code() is Status.INVALID_ARGUMENT
            assert f"settings.{next(iter(bad))}: " in str(error.details())
        assert logger.getEffectiveLevel() == logging.INFO


@pytest.mark.usefixtures("restored_levels")
async def test_clients_change_the_log_only_where_they_may(house: House) -> None:
    error = await status_of(stub_of(house).LogSettings(log_request(log_info=False)))
    assert error.code() is Status.UNIMPLEMENTED
    assert "gateway.remote_log_settings" in str(error.details())
    assert (await stub_of(house).LogSettings(pb.LogSettingsRequest())).settings["log_info"].bool_param
