"""The plans of a store, ready to run: each is read when it is first wanted, and runs once for every bucket of its."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from steploom_engine_worker.tensorrt.arrays import DeviceArray
from steploom_engine_worker.tensorrt.plan_store import REBUILD, Plan, PlanError, PlanStore, TensorSpec
from steploom_engine_worker.tensorrt.runtime import Execution, Network, Runtime, Tensor
from steploom_engine_worker.tensorrt.tick import Lane

log = logging.getLogger(__name__)

UNET, TEXT_ENCODER, VAE_ENCODER, VAE_DECODER = "unet", "text_encoder", "vae_encoder", "vae_decoder"


class Networks:
    """See the module.

    Args:
        runtime: what reads plans.
        store: where they are.
        are_all_needed: whether a network without a plan is an error.

    Attributes:
        buckets: of each network, rising.

    Raises:
        PlanError: a network has no plan.
    """

    def __init__(self, runtime: Runtime, store: PlanStore, are_all_needed: bool = True) -> None:
        self._runtime, self._store = runtime, store
        self._read: dict[str, Network] = {}  # by file
        names = (TEXT_ENCODER, VAE_ENCODER, UNET, VAE_DECODER)
        self._plans: dict[tuple[str, int], Plan] = {}
        for name in names:
            self._plans |= {(name, bucket): plan for plan in store.of(name) for bucket in plan.buckets}
        found = {name: sorted(bucket for network, bucket in self._plans if network == name) for name in names}
        missing = [name for name, buckets in found.items() if not buckets]
        if missing and are_all_needed:
            raise PlanError(f"{store.folder}: holds no engine of the {missing[0]}; {REBUILD}")
        self.buckets: Mapping[str, Sequence[int]] = found

    def __repr__(self) -> str:
        return f"Networks({len(self._read)} of {len(self._store.plans)} plans read)"

    @property
    def num_bytes(self) -> int:
        """Weights that are on the device, by the size of the plans that were read."""
        return sum(plan.num_bytes for plan in self._store.plans if plan.file in self._read)

    def tensors(self, name: str) -> tuple[TensorSpec, ...]:
        """Inputs and outputs of a network that has a plan."""
        return self._plans[name, self.buckets[name][0]].tensors

    def tensor(self, name: str, tensor: str) -> TensorSpec:
        """An input or output of a network, as its plans say.

        Raises:
            PlanError: there is none.
        """
        for spec in self.tensors(name):
            if spec.name == tensor:
                return spec
        raise PlanError(f"{self._store.folder}: the {name} has no {tensor}; {REBUILD}")

    def open(self, name: str, bucket: int, arrays: Mapping[str, DeviceArray], lane: Lane) -> Execution:
        """A network on memory of a bucket, in a lane.

        Args:
            name: of the network.
            bucket: rows.
            arrays: by the names of its tensors; those that it does not have are left out.
            lane: where it runs.

        Raises:
            PlanError: its file is damaged, or holds another network than the manifest says.
            TensorRTError: TensorRT refuses it.
            CudaError: the device does.
        """
        plan = self._plans[name, bucket]
        title = f"{name} for {bucket} {'row' if bucket == 1 else 'rows'}"
        network = self._network(plan)
        shapes = {spec.name: (bucket, *spec.shape[1:]) for spec in plan.tensors if spec.is_input}
        execution = network.execution(plan.buckets.index(bucket), shapes, lane.stream, lane.scratch)
        for spec in plan.tensors:
            shape = execution.shape(spec.name)
            if shape != (bucket, *spec.shape[1:]):
                raise PlanError(
                    f"{self._store.folder / plan.file}: {spec.name} of {title} is {list(shape)}, the manifest says "
                    f"{[bucket, *spec.shape[1:]]}; {REBUILD}"
                )
            if spec.name not in arrays:
                raise PlanError(f"{self._store.folder / plan.file}: {title} has {spec.name}, which nobody knows")
            execution.bind(spec.name, arrays[spec.name])
        return execution

    def _network(self, plan: Plan) -> Network:
        network = self._read.get(plan.file)
        if network is None:
            begin = time.perf_counter()
            network = self._runtime.network(self._store.read(plan), str(plan))
            _check_tensors(network.tensors, plan, self._store)
            self._read[plan.file] = network
            log.info("%s read in %.2f s", plan, time.perf_counter() - begin)
        return network


def _check_tensors(found: Mapping[str, Tensor], plan: Plan, store: PlanStore) -> None:
    """Holds names and types against the manifest."""
    wanted = {spec.name: (spec.dtype, spec.is_input) for spec in plan.tensors}
    given = {tensor.name: (tensor.dtype, tensor.is_input) for tensor in found.values()}
    if wanted != given:
        odd = sorted(name for name in {*wanted, *given} if wanted.get(name) != given.get(name))
        problem = f"{', '.join(odd)} of the {plan.network} are not as the manifest says"
        raise PlanError(f"{store.folder / plan.file}: {problem}; {REBUILD}")
