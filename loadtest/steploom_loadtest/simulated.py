"""A simulated load: what is simulated, on what, and its report in the form of a live one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from steploom_batcher.config import SchedulerConfig, TierConfig
from steploom_batcher.types import Cause, Stage, Status
from steploom_common.adapter import AUTO, NONE
from steploom_loadtest.cost_tables import CostTable
from steploom_loadtest.fleet import ROUND_ROBIN, simulate_fleet
from steploom_loadtest.mix import WrongOption
from steploom_loadtest.report import CANCELLED, OK, Record
from steploom_loadtest.report_model import SIMULATED, Origin, RanTick, Report, Share, StageWork, Work
from steploom_loadtest.simulator import Device, End, JobResult, Simulation, simulate
from steploom_loadtest.traces import Arrival, RequestClass

GUIDED_ROWS = 3  # of a step with instruction and picture guidance, by the model itself
STUDENT_STEPS = 4  # at most, for which a tier with the adapter `auto` is taken to be drawn by a distilled one

# What a caller would get, as in the batcher's table of causes, and the words that a live load counts.
_ENDS = {
    Cause.QUEUE_FULL: ("RESOURCE_EXHAUSTED", "full: tier:{tier}"),
    Cause.CALLER_QUEUE_FULL: ("RESOURCE_EXHAUSTED", "full: token"),
    Cause.NO_SLOT: ("RESOURCE_EXHAUSTED", "full: slots"),
    Cause.DEADLINE: ("DEADLINE_EXCEEDED", "deadline cannot be met"),
    Cause.NO_WORKER: ("UNAVAILABLE", "unavailable"),
    Cause.DRAINING: ("UNAVAILABLE", "unavailable"),
    Cause.POISON: ("INTERNAL", "internal"),
}


@dataclass(frozen=True)
class Site:
    """What serves: equal hosts, each with a batcher and its workers."""

    config: SchedulerConfig
    costs: CostTable
    workers: int  # of each host
    nodes: int = 1  # hosts
    spread: str = ROUND_ROBIN  # how requests get to them: of `fleet.SPREADS`

    def __post_init__(self) -> None:
        try:
            simulate(self.config, self.devices, ())
        except ValueError as error:  # a table without a bucket that the settings allow
            raise WrongOption(f"--costs: {error}") from None

    @property
    def devices(self) -> list[Device]:
        """Of one host."""
        return [Device(costs.profile(f"w{number}")) for number, costs in enumerate(self.costs.workers(self.workers))]


@dataclass(frozen=True)
class SimulatedLoad:
    """What is asked for, and how it is told of."""

    trace: Sequence[Arrival]
    rate: float  # requests a second that the trace asks for
    seconds: float  # of the trace
    title: str = "simulated load"
    settings: Mapping[str, str] = field(default_factory=dict)  # as shown
    seed: int = 0  # of the spread over hosts
    price: float | None = None  # of a device for an hour
    has_ticks: bool = False  # the report tells of every tick; on one host alone


def run_simulated(site: Site, load: SimulatedLoad) -> Report:
    """Simulates the load to its end."""
    if site.nodes == 1:
        run = simulate(site.config, site.devices, load.trace, keep_ticks=load.has_ticks)
    else:
        run = simulate_fleet(site.config, site.devices, site.nodes, load.trace, spread=site.spread, seed=load.seed)
    return Report(
        origin=Origin(SIMULATED, load.title, settings=load.settings),
        offered_rate=load.rate,
        duration_s=load.seconds,
        requests=[_record(job) for job in run.jobs],
        ticks=_ran_ticks(run),
        work=_work(run),
        price=load.price,
        devices=site.workers * site.nodes,
        notes=("simulated: no network, no gateway, no pictures; ticks of a worker run one after the other",),
    )


def with_rows(
    mix: Sequence[RequestClass], tiers: Mapping[str, TierConfig], rows: Mapping[str, int]
) -> list[RequestClass]:
    """The classes with the UNet rows of a step: what is said of their tier, else what draws them.

    A tier whose adapter is `auto` is drawn by a distilled one, one row a step, where it asks for few steps. A named one
    is taken to be distilled.

    Raises:
        WrongOption: a tier is not in the configuration: it could not be scheduled.
    """
    return [replace(kind, rows=_rows(kind.tier, kind.steps, kind.adapter, tiers, rows)) for kind in mix]


def trace_with_rows(
    trace: Sequence[Arrival], tiers: Mapping[str, TierConfig], rows: Mapping[str, int]
) -> list[Arrival]:
    """The same for a trace, whose own rows count where nothing is said of the tier.

    Raises:
        WrongOption: as above.
    """
    _check_tiers({arrival.tier for arrival in trace}, tiers)
    return [replace(item, rows=rows[item.tier]) if item.tier in rows else item for item in trace]


def _rows(tier: str, steps: int, adapter: str, tiers: Mapping[str, TierConfig], rows: Mapping[str, int]) -> int:
    _check_tiers({tier}, tiers)
    if tier in rows:
        return rows[tier]
    name = adapter or tiers[tier].adapter or NONE
    is_student = steps <= STUDENT_STEPS if name == AUTO else name != NONE
    return 1 if is_student else GUIDED_ROWS


def _check_tiers(names: set[str], tiers: Mapping[str, TierConfig]) -> None:
    unknown = sorted(names - tiers.keys())
    if unknown:
        raise WrongOption(f"tier {unknown[0]!r} is not in the configuration, where there are {', '.join(tiers)}")


def _record(job: JobResult) -> Record:
    status, cause = OK, ""
    if job.end is End.CANCELLED:
        status = CANCELLED
    elif job.end is not End.FINISHED:
        status, cause = _ENDS[Cause(job.cause)]
        if job.end is End.FAILED and status == "DEADLINE_EXCEEDED":
            cause = "deadline has passed"
        cause = cause.format(tier=job.arrival.tier)
    usage = job.usage
    return Record(
        job.arrival,
        status,
        job.ended_at,
        usage.queue_s if usage else 0.0,
        usage.mean_rows_per_tick if usage else 0.0,
        usage.ticks if usage else 0,
        cause=cause,
        request_id=job.job_id,
    )


def _work(run: Simulation) -> Work:
    return Work(
        workers=len(run.stats.workers),
        stages={
            stage.name.lower(): StageWork(use.ticks, use.rows, use.padding, use.busy_s)
            for stage, use in run.use.items()
        },
        refused=dict(run.stats.refused),
    )


def _ran_ticks(run: Simulation) -> list[RanTick]:
    rows = {job.job_id: job.arrival.rows for job in run.jobs} if run.ran else {}
    return [
        RanTick(
            worker=ran.tick.worker_id,
            stage=ran.tick.stage.name.lower(),
            start_s=ran.started_at,
            seconds=ran.outcome.seconds,
            rows=ran.tick.rows,
            bucket=ran.tick.bucket,
            shares=tuple(
                Share(entry.job_id, rows[entry.job_id], entry.step + 1)
                if ran.tick.stage is Stage.DENOISE
                else Share(entry.job_id, 1)
                for entry in ran.tick.entries
            ),
            is_ok=ran.outcome.status is Status.OK,
        )
        for ran in run.ran
    ]
