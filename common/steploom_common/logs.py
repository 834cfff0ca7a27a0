"""Logs of a service: lines for people or JSON for programs, each with the ids of what it is about.

What a line is about comes with it (`extra=about(job_id=…)`), or is that of the task that answers a call (`concerns`).
Nothing of a request but its ids and its class is ever a field: no instruction, no picture, no token but its name.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, TextIO

from steploom_common.log_settings import LogConfig

Fields = Mapping[str, Any]

_OURS = ("steploom", "steploom_gateway", "steploom_batcher", "steploom_engine_worker", "steploom_common")
_IDS = ("request_id", "job_id", "job_ids", "error_id", "trace_id", "span_id")  # told in text too
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")  # W3C Trace Context, version 00
_NOTHING: Fields = {}

_concerns: ContextVar[Fields] = ContextVar("log fields", default=_NOTHING)


def about(**fields: Any) -> dict[str, Fields]:
    """The `extra` of a line that is about something; what is empty is left out."""
    return {"fields": _given(fields)}


def concerns(**fields: Any) -> None:
    """From now on every line of this task is about this too. Each call has its own task: nothing is to be undone."""
    _concerns.set({**_concerns.get(), **_given(fields)})


def ids_of(job_id: str, traceparent: str = "") -> dict[str, str]:
    """What tells a job from others, as fields: its own id, its request's, and those of the span that it belongs to.

    Args:
        job_id: as the gateway makes it, the request's id in front.
        traceparent: as W3C has it; empty: none.
    """
    ids = {"job_id": job_id, "request_id": job_id.rpartition("/")[0]}
    found = _TRACEPARENT.fullmatch(traceparent)
    if found:
        ids |= {"trace_id": found[1], "span_id": found[2]}
    return _given(ids)


def set_up(config: LogConfig, service: str, stream: TextIO | None = None) -> None:
    """Begins to log.

    Args:
        config: the `[log]` table.
        service: that every line names.
        stream: where to; None: standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service) if config.format == "json" else TextFormatter())
    level = getattr(logging, config.level.upper())
    # what libraries have to say in detail is about themselves, and may hold what nobody has looked through
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)


class TextFormatter(logging.Formatter):
    """A line for people; ids that its words lack stand at its end."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  as logging has it
        line = super().formatMessage(record)
        fields = fields_of(record)
        missing = {name: fields[name] for name in _IDS if name in fields and str(fields[name]) not in record.message}
        return " ".join([line, *(f"{name}={_plain(value)}" for name, value in missing.items())])


class JsonFormatter(logging.Formatter):
    """An object a line: time, level, service, pid, logger, message, then what it is about.

    Args:
        service: that every line names.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service
        self._pid = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _rfc3339(record.created),
            "level": record.levelname,
            "service": self._service,
            "pid": self._pid,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def json_line(service: str, text: str) -> str:
    """A line that a process has written beside its log, as one of it; a line of its log as it is."""
    if text.startswith("{"):
        try:
            if "time" in json.loads(text):
                return text
        except (ValueError, TypeError):
            pass
    line = {"time": _rfc3339(time.time()), "level": "WARNING", "service": service, "logger": "stderr", "message": text}
    return json.dumps(line, ensure_ascii=False)


def fields_of(record: logging.LogRecord) -> Fields:
    """What a line is about."""
    return {**_concerns.get(), **getattr(record, "fields", _NOTHING)}


def _given(fields: Fields) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in ("", None)}


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _rfc3339(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1e6):06d}Z"
