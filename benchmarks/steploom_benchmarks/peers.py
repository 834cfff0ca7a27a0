"""Who is compared: how each is started, what it is asked by, and which of its own settings the sweep tries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from steploom_benchmarks.loads import Load


@dataclass(frozen=True)
class Setting:
    """How a server is told to batch."""

    max_batch: int
    delay_ms: float  # for which a batch waits for company
    instances: int = 1  # of the model
    options: Mapping[str, bool] = field(default_factory=dict)  # of the server's own

    def __str__(self) -> str:
        instances = f", {self.instances} instances" if self.instances > 1 else ""
        options = "".join(f", {name}" for name, value in self.options.items() if value)
        return f"{self.delay_ms:g} ms{instances}{options}"


@dataclass(frozen=True)
class Peer:
    """A server."""

    name: str
    title: str
    script: str  # in benchmarks/servers
    environment: str  # of `environments`; empty: Steploom's own
    package: str = ""  # that says its version; empty: Steploom's own, or none
    path: str = ""  # of HTTP; empty: it is asked by the Open Inference Protocol over gRPC
    batches: bool = True
    options: tuple[Mapping[str, bool], ...] = ()  # that the sweep tries beside the default
    needs_confinement: bool = False  # it opens ports on all addresses
    is_slow_to_start: bool = False  # so its sweep is shorter
    learns_delay: bool = False  # its batcher takes no delay

    def settings(self, load: Load) -> list[Setting]:
        """What the sweep tries: batches that wait and that do not; more instances where the model costs nothing.

        The first is what the load says. A costly model has one instance, as an accelerator would.
        """
        first = Setting(load.max_batch, load.delay_ms)
        if not self.batches:
            return [first]
        if self.learns_delay:
            return [first] if load.cost_ms else [first, Setting(load.max_batch, load.delay_ms, 2)]
        others = [Setting(load.max_batch, 0.0)]
        if not self.is_slow_to_start:
            is_costly = load.cost_ms > 0
            others.append(Setting(load.max_batch, 2.0) if is_costly else Setting(load.max_batch, load.delay_ms, 2))
        others += [Setting(load.max_batch, load.delay_ms, 1, options) for options in self.options]
        return [first, *others]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("floor", "grpc.aio alone", "floor.py", "", batches=False),
        Peer("steploom", "Steploom", "steploom_server.py", ""),
        Peer("tritonserver", "Triton, Python backend", "tritonserver_server.py", "pytriton", "nvidia-pytriton"),
        Peer("pytriton", "pytriton", "pytriton_server.py", "pytriton", "nvidia-pytriton"),
        Peer("mosec", "MOSEC", "mosec_server.py", "mosec", "mosec", "/inference"),
        Peer(
            "litserve",
            "LitServe",
            "litserve_server.py",
            "litserve",
            "litserve",
            "/predict",
            options=({"fast_queue": True},),
        ),
        Peer("bentoml", "BentoML", "bentoml_server.py", "bentoml", "bentoml", "/infer", learns_delay=True),
        Peer("ray", "Ray Serve", "ray_server.py", "ray", "ray", "/", needs_confinement=True, is_slow_to_start=True),
    )
}
