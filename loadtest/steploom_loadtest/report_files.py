"""A report as files: JSON with everything, CSV with a line a request, one HTML page; each whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from steploom_loadtest.report import Record
from steploom_loadtest.report_figures import summary
from steploom_loadtest.report_html import page
from steploom_loadtest.report_model import Report
from steploom_loadtest.trace_file import ANSWERS, FIELDS

NAMES = ("report.json", "requests.csv", "report.html")


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes the three files of NAMES into `folder`, which is made; returns where they are.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = (report.to_json(summary(report)), requests_csv(report), page(report))
    paths = [folder / name for name in NAMES]
    for path, text in zip(paths, texts, strict=True):
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return paths


def requests_csv(report: Report) -> str:
    """A header and a line a request, in the order of the trace. It is a trace itself: see `trace_file`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*FIELDS, *ANSWERS))
    for record in report.requests:
        writer.writerow(_cells(record))
    return text.getvalue()


def _cells(record: Record) -> list[str]:
    arrival = record.arrival
    cancel = "" if arrival.cancel_after_s is None else f"{arrival.cancel_after_s:.6f}"
    asked = [f"{arrival.at:.6f}", arrival.tier, str(arrival.steps), str(arrival.rows), f"{arrival.deadline_s:g}"]
    times = [f"{value:.6f}" for value in (record.sent_at, record.ended_at, record.latency_s)]
    ended = [str(int(record.is_good)), record.status, record.cause]
    ticks = [f"{record.queue_s:.6f}", str(record.ticks), f"{record.mean_rows_per_tick:.3f}", record.request_id]
    return [*asked, cancel, arrival.adapter, str(arrival.side), *times, *ended, *ticks]
