"""Searches the batcher's settings in the simulator: more pictures in time, and a p99 that is further from the deadline.

The search is Optuna's tree-structured Parzen estimator for several objectives (Ozaki, Tanigaki, Watanabe, Onishi,
"Multiobjective Tree-Structured Parzen Estimator for Computationally Expensive Optimization Problems", GECCO 2020). It
starts at the settings that there are, and all settings see the same traces. Whatever it likes best is then held
against other traces: settings that only suit the traces of the search show it there.

Pictures in time a second alone would ask to starve whatever takes long. So settings under which a tier loses are marked
down by what it loses: see `Score.worth`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import Stage
from steploom_loadtest.report_figures import Figures, figures
from steploom_loadtest.simulated import SimulatedLoad, Site, run_simulated
from steploom_loadtest.traces import Arrival

if TYPE_CHECKING:
    from optuna.trial import Trial

_CLEARLY = 0.01  # of the pictures in time, or of a deadline: less is chance
_LOSS_WEIGHT = 5.0  # a tier's loss counts so many times what it is of all requests

Values = Mapping[str, float]  # by knob


@dataclass(frozen=True)
class Traces:
    """What settings are tried on."""

    traces: Sequence[Sequence[Arrival]]
    rate: float  # requests a second of each
    seconds: float  # of each


@dataclass(frozen=True)
class Knob:
    """A setting that is searched."""

    name: str  # below `batcher`, as in tiers.free.weight
    low: float
    high: float
    is_whole: bool = False
    is_log: bool = False
    choices: tuple[int, ...] = ()  # the values, where not all between are

    def suggest(self, trial: Trial) -> float:
        """A value to try."""
        if self.choices:
            return int(trial.suggest_categorical(self.name, self.choices))
        if self.is_whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.is_log)
        # what is tried is what a person will read in the file
        return float(f"{trial.suggest_float(self.name, self.low, self.high, log=self.is_log):.4g}")

    def nearest(self, value: float) -> float:
        """The value that can be searched."""
        if self.choices:
            return min(self.choices, key=lambda choice: abs(choice - value))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Goal:
    """What a search is for."""

    rate: float  # requests a second
    max_loss: float = 0.01  # of each tier's share in time, beside the settings that there are: so much is chance


@dataclass(frozen=True)
class Score:
    """What settings give, as a mean over traces."""

    goodput: float  # pictures in time, for each second of the trace
    p99_share: float  # of the deadline; of the tier where it is most
    in_time: Mapping[str, float]  # share by tier

    def worth(self, start: Score, goal: Goal) -> float:
        """Pictures in time a second, less what tiers lose beside `start`, several times over."""
        loss = sum(max(0.0, start.in_time[tier] - share - goal.max_loss) for tier, share in self.in_time.items())
        return self.goodput - _LOSS_WEIGHT * loss * goal.rate

    def is_better(self, start: Score, goal: Goal) -> bool:
        """More is in time; or about as much, with a p99 that is clearly further from the deadline."""
        more = self.worth(start, goal) / max(1e-9, start.goodput) - 1.0
        return more > _CLEARLY or (more > -_CLEARLY / 2 and self.p99_share < start.p99_share - _CLEARLY)


@dataclass(frozen=True)
class Candidate:
    """Settings that were tried."""

    values: Values
    config: SchedulerConfig
    score: Score  # on the traces of the search
    held_out: Score | None = None  # on others; None: not tried there


@dataclass(frozen=True)
class Tuning:
    """What a search has found."""

    goal: Goal
    start: Candidate  # the settings that there were
    tried: Sequence[Candidate]  # in the order of the search, the start first
    front: Sequence[Candidate]  # those that none beats in both figures, the most pictures in time first
    best: Sequence[Candidate]  # held against other traces, the best there first; the start is none of them


def knobs(site: Site, tiers: Sequence[str]) -> list[Knob]:
    """What can be searched: with these devices, and these tiers in the mix."""
    tables = [device.true_costs[Stage.DENOISE] for device in site.devices]
    buckets = tuple(sorted({bucket for table in tables for bucket in table if bucket >= 3}))
    longest_s = min(0.1, max(max(table.values()) for table in tables))
    shares = [Knob(f"tiers.{tier}.weight", 0.1, 10.0, is_log=True) for tier in tiers[1:]]
    queues = [Knob(f"tiers.{tier}.max_queued", 4, 4096, is_whole=True, is_log=True) for tier in tiers]
    return [
        Knob("max_rows", buckets[0], buckets[-1], choices=buckets),
        Knob("batch_gain", 0.0, 0.5),
        Knob("max_queue_delay_s", 0.0, max(0.002, longest_s)),
        # one alone leaves a device idle for as long as an answer is on its way, of which the simulator knows nothing
        Knob("ticks_in_flight", 2, 4, is_whole=True),
        Knob("fairness", 0.0, 4.0),
        Knob("margin", 0.0, 1.0),
        *shares,
        *queues,
    ]


def values_of(config: SchedulerConfig, searched: Sequence[Knob]) -> dict[str, float]:
    """Where a search starts: the settings that there are, each at the nearest value that can be searched."""
    return {knob.name: knob.nearest(_get(config, knob.name)) for knob in searched}


def configured(config: SchedulerConfig, values: Values) -> SchedulerConfig:
    """The settings with these values."""
    tiers = dict(config.tiers)
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if name.startswith("tiers."):
            _, tier, key = name.split(".")
            changed: dict[str, Any] = {key: value}
            tiers[tier] = replace(tiers[tier], **changed)
        else:
            plain[name] = value
    return replace(config, tiers=tiers, **plain)


def tune(
    site: Site,
    searched: Sequence[Knob],
    traces: Traces,
    held_out: Traces,
    goal: Goal,
    *,
    trials: int,
    top: int,
    seed: int,
    on_trial: Callable[[int, Score], None] | None = None,
) -> Tuning:
    """Searches, and holds the best against other traces.

    Args:
        site: devices, and the settings to start from.
        searched: what may change.
        traces: on which all settings are tried.
        held_out: others, for the best and the start.
        goal: at the rate of all of them.
        trials: settings to try, the start included.
        top: how many are held against the other traces.
        seed: of the search; the same one finds the same.
        on_trial: hears of each.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(5, trials // 4), multivariate=False)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.enqueue_trial(values_of(site.config, searched))
    # the start is scored as it is, also where it lies outside of what is searched
    first = Candidate(values_of(site.config, searched), site.config, score(site, site.config, traces))
    tried = [first]

    def objective(trial: Trial) -> tuple[float, float]:
        values = {knob.name: knob.suggest(trial) for knob in searched}
        config = configured(site.config, values)
        found = score(site, config, traces)
        if trial.number:
            tried.append(Candidate(values, config, found))
        if on_trial is not None:
            on_trial(trial.number + 1, found)
        return found.worth(first.score, goal), found.p99_share

    study.optimize(objective, n_trials=trials)
    others = sorted(tried[1:], key=lambda item: item.score.worth(first.score, goal), reverse=True)
    start = replace(first, held_out=score(site, first.config, held_out))
    checked = [replace(item, held_out=score(site, item.config, held_out)) for item in others[:top]]
    assert start.held_out is not None
    base = start.held_out
    checked.sort(key=lambda item: _rank(item.held_out, base, goal))
    return Tuning(goal, start, [start, *tried[1:]], front([start, *tried[1:]], goal), checked)


def _rank(found: Score | None, base: Score, goal: Goal) -> tuple[float, float]:
    """Smaller is better; what is worth the same to a thousandth goes by its p99."""
    assert found is not None
    return -round(found.worth(base, goal), 3), found.p99_share


def front(tried: Sequence[Candidate], goal: Goal) -> list[Candidate]:
    """Those of which no other has at least as much worth and as small a p99, and one of the two better."""
    start = tried[0].score
    points = [(item.score.worth(start, goal), item.score.p99_share) for item in tried]
    chosen = [
        (worth, item)
        for item, (worth, p99) in zip(tried, points, strict=True)
        if not any(
            other >= worth and other_p99 <= p99 and (other, other_p99) != (worth, p99) for other, other_p99 in points
        )
    ]
    return [item for _, item in sorted(chosen, key=lambda pair: -pair[0])]


def score(site: Site, config: SchedulerConfig, traces: Traces) -> Score:
    """What settings give on these traces."""
    place = replace(site, config=config)
    loads = [SimulatedLoad(trace, traces.rate, traces.seconds) for trace in traces.traces]
    return mean_score([figures(run_simulated(place, load)) for load in loads], traces.seconds)


def mean_score(found: Sequence[Figures], seconds: float) -> Score:
    """Of several runs, whose traces have so many seconds."""
    tiers = sorted({tier.tier for item in found for tier in item.tiers})
    shares = {
        name: [tier.in_time_share for item in found for tier in item.tiers if tier.tier == name] for name in tiers
    }
    worst = [max(tier.percentiles_s["p99"] / tier.deadline_s for tier in item.tiers) for item in found]
    return Score(
        goodput=sum(tier.in_time for item in found for tier in item.tiers) / (seconds * len(found)),
        p99_share=sum(worst) / len(worst),
        in_time={name: sum(own) / len(own) for name, own in shares.items()},
    )


def _get(config: SchedulerConfig, name: str) -> float:
    value: Any = config
    for part in name.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return float(value)
