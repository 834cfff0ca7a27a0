"""What the engine on TensorRT says and does when CUDA, TensorRT or a plan fails: at its start, later, and in a tick."""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorrt_house import House, draw, house_of

from steploom_common.settings import ConfigError
from steploom_engine_worker.commands import Admit, Picture, Tick, TickDone, TickStatus
from steploom_engine_worker.description import describe
from steploom_engine_worker.engine import Job, Stage
from steploom_engine_worker.errors import FatalEngineError, is_fatal
from steploom_engine_worker.tensorrt.device import CudaError
from steploom_engine_worker.tensorrt.fake.driver import Code
from steploom_engine_worker.tensorrt.fake.trt import plan_bytes
from steploom_engine_worker.tensorrt.load import build_tensorrt_engine
from steploom_engine_worker.tensorrt.plan_store import PlanStore, add_file, open_store
from steploom_engine_worker.worker import Worker

PATIENCE_S = 60.0
SIDE = 64  # of the tiny model

MakeJob = Callable[..., Job]


@pytest.fixture
def house(tiny_model_dir: Path, tmp_path: Path) -> House:
    return house_of(tiny_model_dir, tmp_path / "engines")


@pytest.mark.parametrize(
    ("call", "answer", "words"),
    [
        ("deserialize_cuda_engine", None, "the plan of unet for 12 rows cannot be read by tensorrt 10.9.0"),
        ("create_execution_context", None, "no execution context of unet for 12 rows"),
        ("set_input_shape", False, "set_input_shape(sample, (12, 8, 8, 8)) of unet for 12 rows failed"),
        ("set_tensor_address", False, "set_tensor_address(sample, "),
        ("execute_async_v3", False, "execute_async_v3("),
    ],
)
def test_what_tensorrt_refuses_at_the_start_is_told_with_its_reason(
    house: House, call: str, answer: Any, words: str
) -> None:
    house.trt.refuse[call] = answer
    house.trt.said = "the moon is full"
    with pytest.raises(ConfigError) as caught:
        house.engine()
    assert caught.value.key == "worker.engine"
    assert words in caught.value.problem
    assert f"{call}: the moon is full" in caught.value.problem
    assert not is_fatal(caught.value)


def test_a_profile_that_tensorrt_refuses_is_told(tiny_model_dir: Path, tmp_path: Path) -> None:
    house = house_of(tiny_model_dir, tmp_path, is_shared=True)
    house.trt.refuse["set_optimization_profile_async"] = False
    with pytest.raises(ConfigError, match=r"set_optimization_profile_async\(3, .* of unet for 1, 3, 6, 12 rows failed"):
        house.engine()


def test_an_execution_that_is_refused_while_it_is_recorded_is_told(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """False, which nobody looked at, once made a graph without its network: every picture was the same."""
    engine = house.engine()
    captures = house.driver.calls.count("cuStreamBeginCapture")
    answers = iter([True] * 4 + [False])  # two networks run twice; then they are recorded

    class Later(dict[str, Any]):
        def __contains__(self, call: object) -> bool:
            return call == "execute_async_v3" and next(answers) is False

    house.trt.refuse = Later(execute_async_v3=False)
    assert engine.prepare() == {}
    assert house.driver.calls.count("cuStreamBeginCapture") == captures + 1
    assert re.search(r"encode 1 is not recorded.*execute_async_v3\(\d+\) of vae_encoder for 1 row failed", caplog.text)
    house.trt.refuse = {}
    while engine.prepare() is not None:  # its stream is no longer recorded
        pass
    assert engine.progress == (7, 7)


def test_a_shape_that_is_not_the_manifests_is_told(house: House) -> None:
    house.trt.refuse["get_tensor_shape"] = (12, 8, 8, 5)
    with pytest.raises(ConfigError, match=r"sample of unet for 12 rows is \[12, 8, 8, 5\], the manifest says \[12, 8"):
        house.engine()


def changed(store: PlanStore, network: str, content: bytes) -> None:
    """Puts another plan in the place of a network's largest."""
    plan = store.of(network)[-1]
    file = add_file(store.folder, content)
    plans = [item for item in store.plans if item != plan]
    replace(store, plans=(*plans, replace(plan, file=file, num_bytes=len(content)))).write()


def test_a_plan_whose_tensors_are_not_the_manifests_is_told(house: House) -> None:
    tensors = [("sample", "float32", (-1, 8, 8, 8), True), ("prediction", "float16", (-1, 8, 8, 4), False)]
    changed(open_store(house.folder), "unet", plan_bytes("unet", [12], tensors))
    with pytest.raises(ConfigError, match="context, sample, timesteps of the unet are not as the manifest says"):
        house.engine()


def test_a_plan_that_is_damaged_or_truncated_is_told(house: House) -> None:
    plan = open_store(house.folder).of("vae_decoder")[-1]
    file = house.folder / plan.file
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match=r"vae_decoder for 4 rows has .* truncated .* build it again"):
        house.engine()
    file.write_bytes(whole.replace(b"-", b"+"))
    with pytest.raises(ConfigError, match="vae_decoder for 4 rows is damaged"):
        house.engine()


def test_engines_of_another_model_are_told(house: House) -> None:
    replace(open_store(house.folder), model_digest="0" * 64).write()
    with pytest.raises(ConfigError, match="the engines were built from another model: digest 000000000000"):
        house.engine()


def test_engines_without_a_network_or_a_common_bucket_are_told(house: House) -> None:
    store = open_store(house.folder)
    replace(store, plans=tuple(plan for plan in store.plans if plan.network != "text_encoder")).write()
    with pytest.raises(ConfigError, match="holds no engine of the text_encoder; build it again"):
        house.engine()
    some = [plan for plan in store.plans if (plan.network, plan.buckets) != ("text_encoder", (1,))]
    some = [plan for plan in some if (plan.network, plan.buckets) != ("vae_encoder", (4,))]
    for plan in store.plans:
        (house.folder / plan.file).touch()
    replace(store, plans=tuple(some)).write()
    with pytest.raises(ConfigError, match=r"have no bucket in common: \[1\] and \[4\]"):
        house.engine()


def test_constants_of_another_number_of_tokens_are_told(house: House) -> None:
    file = house.folder / "host.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_tokens": 9}))
    with pytest.raises(ConfigError, match="takes 16 tokens, the host's constants say 9"):
        house.engine()


@pytest.mark.parametrize(
    "call",
    ["cuModuleLoadData", "cuModuleGetFunction", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"],
)
def test_what_the_driver_refuses_at_the_start_is_told_with_its_name(house: House, call: str) -> None:
    house.driver.fail(call, Code.CUDA_ERROR_INVALID_VALUE)
    with pytest.raises(
        CudaError, match=rf"CUDA error 1 \(CUDA_ERROR_INVALID_VALUE\) in {call}: invalid value"
    ) as caught:
        house.engine()
    assert is_fatal(caught.value)
    engine = house.engine()  # nothing of it stays
    assert engine.progress == (3, 8)


def test_a_device_without_memory_for_the_largest_is_told(tiny_model_dir: Path, tmp_path: Path) -> None:
    house = house_of(tiny_model_dir, tmp_path)
    house.driver._total = 200_000
    with pytest.raises(CudaError, match=r"CUDA error 2 \(CUDA_ERROR_OUT_OF_MEMORY\) in cuMemAlloc") as caught:
        house.engine()
    assert is_fatal(caught.value)


def test_memory_is_given_back_with_the_engine(house: House) -> None:
    engine = house.engine()
    assert house.driver.used_bytes > 0
    assert [name for name in house.driver.calls if name == "cuMemFree"] == []
    del engine
    assert house.driver.used_bytes == 0


def test_a_graph_that_cannot_be_made_later_is_given_up_and_larger_ones_serve(house: House, make_job: MakeJob) -> None:
    engine = house.engine()
    expected = draw(engine, [make_job()])[0]
    house.trt.refuse["create_execution_context"] = None
    house.trt.said = "CUDA error: out of memory"  # words that end a worker elsewhere
    for left in (7, 6, 5):
        assert engine.prepare() == {}
        assert engine.progress == (3, left)
    house.trt.refuse.clear()
    assert engine.prepare()
    assert engine.progress == (4, 5)
    assert np.array_equal(draw(engine, [make_job()])[0], expected)


def test_a_device_that_is_lost_while_a_graph_is_made_is_no_refusal(house: House) -> None:
    engine = house.engine()
    house.trt.refuse["execute_async_v3"] = False
    house.driver.fail("cuCtxSynchronize", Code.CUDA_ERROR_ILLEGAL_ADDRESS)
    with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
        engine.prepare()


class Rig:
    """A worker over the engine, and a batcher's side."""

    def __init__(self, house: House, folder: Path) -> None:
        self.house = house
        self.worker = Worker("w", lambda: build_tensorrt_engine(house.config(), house.finders), folder)
        self.worker.start()
        self.ready = self.worker.ready.result(timeout=PATIENCE_S)
        self.reports: queue.Queue[TickDone] = queue.Queue()
        self.session = self.worker.open_session(self.reports.put)
        self._tick_id = 0

    def admit(self, slot: int, **changes: Any) -> None:
        picture = Picture(SIDE, SIDE, np.full((SIDE, SIDE, 3), 50 * slot, np.uint8).tobytes())
        values = {"instruction": "make the hair red", "picture": picture, "output": None, "steps": 2, "seed": slot}
        values |= {"guidance_scale": 7.5, "image_guidance_scale": 1.5}
        assert self.worker.submit(self.session, Admit(job_id=str(slot), slot=slot, **{**values, **changes}))

    def post(self, stage: Stage, slots: list[int], steps: list[int] | None = None) -> None:
        self._tick_id += 1
        assert self.worker.submit(self.session, Tick(self._tick_id, stage, slots, steps or []))

    def report(self) -> TickDone:
        return self.reports.get(timeout=PATIENCE_S)


@pytest.fixture
def rig(house: House, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(house, tmp_path)
    yield rig
    rig.worker.stop(PATIENCE_S)


def test_the_worker_cannot_tell_it_from_another_engine(rig: Rig) -> None:
    assert rig.ready.engine == "tensorrt"
    assert {bucket for stage, bucket in rig.ready.costs if stage is Stage.DENOISE} == {1, 3, 6, 12}
    for slot in (0, 1):
        rig.admit(slot, preview_every=1)
    rig.post(Stage.ENCODE, [0, 1])
    for step in (0, 1):
        rig.post(Stage.DENOISE, [0, 1], [step, step])
    rig.post(Stage.DECODE, [1, 0])
    reports = [rig.report() for _ in range(4)]
    assert [report.status for report in reports] == [TickStatus.OK] * 4
    assert [report.tick_id for report in reports] == [1, 2, 3, 4]
    assert [picture.slot for picture in reports[1].pictures] == [0, 1]  # previews after the first step
    assert [picture.slot for picture in reports[3].pictures] == [1, 0]
    assert all(len(picture.picture.data) == SIDE * SIDE * 3 for picture in reports[3].pictures)


@pytest.mark.parametrize("code", [Code.CUDA_ERROR_ILLEGAL_ADDRESS, Code.CUDA_ERROR_LAUNCH_FAILED])
@pytest.mark.parametrize("call", ["cuGraphLaunch", "cuEventSynchronize", "cuMemcpyHtoDAsync"])
def test_a_device_that_is_lost_ends_the_worker(rig: Rig, call: str, code: Code) -> None:
    rig.admit(0)
    rig.post(Stage.ENCODE, [0])
    assert rig.report().status is TickStatus.OK
    rig.house.driver.fail(call, code)
    rig.post(Stage.DENOISE, [0], [0])
    with pytest.raises(FatalEngineError, match=rf"CUDA error {int(code)} \({code.name}\) in {call}"):
        rig.worker.ended.result(timeout=PATIENCE_S)


def test_a_job_out_of_bounds_fails_alone(rig: Rig) -> None:
    rig.admit(0, steps=1000)
    rig.admit(1)
    rig.post(Stage.ENCODE, [1])
    assert rig.report().status is TickStatus.OK
    rig.post(Stage.ENCODE, [0])
    failed = rig.report()
    assert failed.status is TickStatus.FAILED
    assert "steps is 1000, must be 1 to 8" in failed.error


def test_engines_for_other_adapters_are_told(tiny_model_dir: Path, tmp_path: Path) -> None:
    house = house_of(tiny_model_dir, tmp_path, adapters=("sketch",))
    assert describe(tiny_model_dir).adapters == ()
    with pytest.raises(ConfigError, match=r"the engines are for the adapters \['sketch'\]"):
        house.engine()
