"""A report for the terminal: tables of tiers, of the run as a whole, and of a sweep."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from steploom_loadtest.report_figures import SHARES, DeviceFigures, Figures, figures
from steploom_loadtest.report_model import Report, Sweep


def tables(report: Report) -> list[Table]:
    """All of them, in their order."""
    found = figures(report)
    rows = Table(title=report.origin.title, title_justify="left", box=None, pad_edge=False, show_header=False)
    for name, value in facts(report, found):
        rows.add_row(name, value)
    parts = [tier_table(found), rows]
    return [*parts, sweep_table(report.sweep)] if report.sweep else parts


def tier_table(found: Figures) -> Table:
    """A row a tier, narrow enough for a small terminal; seconds from the moments at which requests were to be sent."""
    table = _narrow("seconds, and rows a tick, by tier")
    table.add_column("tier", no_wrap=True)
    for column in ("sent", "done", "in time", "deadline", *SHARES, "max", "queue", "rows"):
        table.add_column(column, justify="right", no_wrap=True)
    for tier in found.tiers:
        seconds = (*tier.percentiles_s.values(), tier.max_s, tier.mean_queue_s)
        table.add_row(
            tier.tier,
            str(tier.sent),
            str(tier.done),
            f"{tier.in_time_share:.1%}",
            f"{tier.deadline_s:g}",
            *(f"{value:.3f}" for value in seconds),
            f"{tier.rows_per_tick:.1f}",
        )
    return table


def facts(report: Report, found: Figures) -> Iterator[tuple[str, str]]:
    """What is told of the run as a whole, as names and values."""
    yield "offered", f"{found.offered_rate:.2f} requests/s for {report.duration_s:g} s; sent {found.sent_rate:.2f}"
    yield "achieved", f"{found.achieved_rate:.2f} pictures/s"
    goodput = ", ".join(f"{tier.tier} {tier.goodput:.2f}" for tier in found.tiers)
    yield "goodput", f"{found.goodput:.2f} pictures/s within their deadline" + (f": {goodput}" if goodput else "")
    yield "ends", _counts(found.statuses)
    yield "without a picture", _counts(found.refused)
    if report.origin.kind == "live":
        lags = [1000 * value for value in (found.lag_p50_s, found.lag_p99_s, found.max_lag_s)]
        yield "generator late", f"p50 {lags[0]:.1f} ms, p99 {lags[1]:.1f} ms, at most {lags[2]:.1f} ms"
    yield from _device_facts(report, found.devices)
    if found.cost_per_1000 is not None:
        paid = f"at {report.price:g} for a device and hour; devices: {report.devices}"
        yield "cost", f"{found.cost_per_1000:.4g} for 1,000 pictures, {paid}"
    if report.is_interrupted:
        yield "interrupted", f"after {found.seconds:.1f} s; requests that were open then are counted as such"
    for note in report.notes:
        yield "note", note


def _device_facts(report: Report, devices: DeviceFigures | None) -> Iterator[tuple[str, str]]:
    if devices is None or report.work is None:
        return
    yield "rows a tick", f"{devices.rows_per_tick:.2f}; {devices.padding:.1%} of the rows computed were padding"
    if devices.busy is not None:
        how = "" if devices.busy_is_exact else ", where stages that overlap count twice"
        yield "devices busy", f"{devices.busy:.1%} of the time of {report.work.workers}{how}"
    yield "ticks", _counts(devices.ticks)
    if report.work.refused:
        yield "refused, of all callers", _counts(report.work.refused)


def sweep_table(sweep: Sweep) -> Table:
    """A row a rate: what it gave, and by tier the share in time and seconds; below it what each tier bears."""
    table = _narrow("rates that were tried", "\n".join(verdicts(sweep)))
    names = [limit.tier for limit in sweep.limits]
    by_tier = (cell for name in names for cell in (name, "p50", "p99"))
    for column in ("rate/s", "pictures/s", "in time/s", "late ms", *by_tier):
        table.add_column(column, justify="right", no_wrap=True)
    for point in sweep.points:
        cells = [f"{point.rate:.2f}", f"{point.achieved:.2f}", f"{point.goodput:.2f}", f"{1000 * point.max_lag_s:.0f}"]
        tiers = {tier.tier: tier for tier in point.tiers}
        for name in names:
            tier = tiers.get(name)
            cells += [f"{tier.in_time:.1%}", f"{tier.p50_s:.3f}", f"{tier.p99_s:.3f}"] if tier else ["", "", ""]
        table.add_row(*cells)
    return table


def _narrow(title: str, caption: str = "") -> Table:
    return Table(
        title=title, caption=caption or None, title_justify="left", caption_justify="left", box=None,
        pad_edge=False, padding=(0, 0, 0, 1),
    )  # fmt: skip


def verdicts(sweep: Sweep) -> Iterator[str]:
    """What a sweep has found, a line each."""
    for limit in sweep.limits:
        if not limit.holds_at:
            yield f"{limit.tier}: not 99 of 100 in time at any rate that was tried"
        elif limit.fails_at is None:
            yield f"{limit.tier}: 99 of 100 in time at every rate that was tried, up to {limit.holds_at:.2f}/s"
        else:
            yield f"{limit.tier}: 99 of 100 in time up to {limit.holds_at:.2f}/s, no more at {limit.fails_at:.2f}/s"
    if sweep.knee is not None:
        near = f", between {min(sweep.knee_range):.2f} and {max(sweep.knee_range):.2f}" if sweep.knee_range else ""
        yield f"knee: {sweep.knee:.2f}/s{near}, where pictures a second over their mean latency are most"


def _counts(counts: object) -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
