"""Logs: for people and for programs, with the ids of what they are about."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from steploom_common.log_settings import LogConfig
from steploom_common.logs import about, concerns, ids_of, json_line, set_up
from steploom_common.settings import ConfigError

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
log = logging.getLogger("steploom_common.test_logs")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    names = ("steploom", "steploom_gateway", "steploom_batcher", "steploom_engine_worker", "steploom_common")
    before = root.level, root.handlers[:], {name: logging.getLogger(name).level for name in names}
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in before[2].items():
        logging.getLogger(name).setLevel(level)


def logged(config: LogConfig) -> io.StringIO:
    stream = io.StringIO()
    set_up(config, "batcher", stream)
    return stream


def test_json_is_an_object_a_line_with_what_it_is_about() -> None:
    stream = logged(LogConfig(format="json"))
    log.warning("job %s failed:\n%s", "r/1", "Überlauf", extra=about(**ids_of("r/1", f"00-{TRACE}-{SPAN}-01"), ms=1.5))
    try:
        raise ValueError("so what")
    except ValueError:
        log.exception("error id %s", "e1", extra=about(error_id="e1"))
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("time").endswith("Z")
    assert first.pop("pid") > 0
    assert first == {
        "level": "WARNING",
        "service": "batcher",
        "logger": "steploom_common.test_logs",
        "message": "job r/1 failed:\nÜberlauf",
        "job_id": "r/1",
        "request_id": "r",
        "trace_id": TRACE,
        "span_id": SPAN,
        "ms": 1.5,
    }
    assert (second["error_id"], second["level"]) == ("e1", "ERROR")
    assert second["exception"].endswith("ValueError: so what")


def test_text_has_the_ids_that_its_words_lack() -> None:
    stream = logged(LogConfig())
    log.info("job r/1 begins", extra=about(job_id="r/1", trace_id=TRACE, ms=1.5))
    log.info("nothing in particular")
    first, second = stream.getvalue().splitlines()
    assert first.endswith(f"INFO steploom_common.test_logs: job r/1 begins trace_id={TRACE}")
    assert second.endswith("nothing in particular")


async def test_lines_of_a_call_are_about_it_and_those_of_others_are_not() -> None:
    stream = logged(LogConfig(format="json"))

    async def call(request_id: str) -> None:
        concerns(request_id=request_id, tier="")
        await asyncio.sleep(0)
        log.info("within", extra=about(job_id=f"{request_id}/1"))

    await asyncio.gather(call("a"), call("b"))
    log.info("outside")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line.get("request_id"), line.get("job_id"), line.get("tier")) for line in lines] == [
        ("a", "a/1", None),
        ("b", "b/1", None),
        (None, None, None),
    ]


def test_the_level_is_that_of_the_services_and_libraries_stay_at_theirs() -> None:
    stream = logged(LogConfig(level="debug"))
    log.debug("ours")
    logging.getLogger("PIL.PngImagePlugin").debug("theirs")
    assert "ours" in stream.getvalue()
    assert "theirs" not in stream.getvalue()
    stream = logged(LogConfig(level="warning"))
    log.info("ours")
    logging.getLogger("PIL.PngImagePlugin").info("theirs")
    assert not stream.getvalue()


@pytest.mark.parametrize("word", ["", "zz-1-2-3", f"00-{TRACE}-{SPAN}", f"00-{TRACE.upper()}-{SPAN}-01", "x" * 10_000])
def test_a_damaged_trace_is_none(word: str) -> None:
    assert ids_of("r/1", word) == {"job_id": "r/1", "request_id": "r"}


def test_a_job_of_no_gateway_has_no_request() -> None:
    assert ids_of("lone") == {"job_id": "lone"}


@pytest.mark.parametrize("text", ["Fatal Python error: Aborted", '{"a": 1}', "{no json", "{}", ""])
def test_what_is_written_beside_a_log_becomes_a_line_of_it(text: str) -> None:
    line = json.loads(json_line("worker-0", text))
    assert (line["service"], line["message"], line["level"]) == ("worker-0", text, "WARNING")


def test_a_line_of_a_log_stays_as_it_is() -> None:
    stream = logged(LogConfig(format="json"))
    log.info("x")
    line = stream.getvalue().rstrip("\n")
    assert json_line("worker-0", line) == line


@pytest.mark.parametrize(("key", "value"), [("format", "xml"), ("level", "loud")])
def test_what_there_is_not_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: is '{value}', must be one of"):
        LogConfig(**{key: value})
