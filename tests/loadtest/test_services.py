"""What services say while a load runs: differences of counters, ticks by request, and silence that is no error."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from steploom_loadtest import services
from steploom_loadtest.report_model import Share, StageWork
from steploom_loadtest.services import CannotLook, Counters, Seen, Watch, read_counters, watched, work_between
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1 import batcher_pb2_grpc
from steploom_protos.worker.v1 import worker_pb2


def metrics_page(ticks: int, started: float = 1000.0, refused: int = 2) -> str:
    lines = [
        f"steploom_batcher_start_time_seconds {started}",
        'steploom_worker_up{worker="a"} 1.0',
        'steploom_worker_up{worker="b"} 1.0',
        'steploom_worker_up{worker="c"} 0.0',
        "# TYPE steploom_batcher_refused counter",
        f'steploom_batcher_refused_total{{cause="queue_full"}} {refused}',
        "# TYPE steploom_gateway_refused counter",
        'steploom_gateway_refused_total{cause="rate"} 3.0',
    ]
    for name, value in (("ticks", ticks), ("rows", 3 * ticks), ("padding_rows", ticks), ("busy_seconds", 0.5 * ticks)):
        lines.append(f"# TYPE steploom_worker_{name} counter")
        lines += [f'steploom_worker_{name}_total{{stage="denoise",worker="{worker}"}} {value}' for worker in "ab"]
    return "\n".join(lines) + "\n"


def test_counters_are_summed_over_workers() -> None:
    found = read_counters(metrics_page(10))
    assert (found.started, found.workers) == (1000.0, 2)
    assert found.stages["denoise"] == {"ticks": 20, "rows": 60, "padding_rows": 20, "busy_seconds": 10.0}
    assert found.stages["encode"]["ticks"] == 0
    assert found.refused == {"queue_full": 2, "rate": 3}


def test_work_is_the_difference() -> None:
    work = work_between(read_counters(metrics_page(10)), read_counters(metrics_page(14, refused=7)))
    assert work.stages["denoise"] == StageWork(8, 24, 8, 4.0)
    assert (work.workers, work.refused) == (2, {"queue_full": 5})


def test_of_a_batcher_that_began_anew_all_counts() -> None:
    work = work_between(read_counters(metrics_page(10)), read_counters(metrics_page(14, started=2000.0)))
    assert work.stages["denoise"].ticks == 28


@pytest.mark.parametrize("page", ["", "steploom_gateway_in_flight 1\n", "{ no metrics"])
def test_a_page_without_a_batcher_tells_nothing(page: str) -> None:
    with pytest.raises(CannotLook):
        read_counters(page)


@contextmanager
def metrics_of(pages: list[str]) -> Iterator[str]:
    """A page that changes from look to look."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pages.pop(0).encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


async def seen_by(watch: Watch, start_unix_s: float = 0.0) -> Seen:
    """Of a run in which nothing happens."""
    async with watched(watch, lambda: start_unix_s) as seen:
        pass
    assert isinstance(seen, Seen)
    return seen


class TickingBatcher(batcher_pb2_grpc.BatcherServicer):
    """One tick more at each look, of which those before the first are not ours."""

    def __init__(self, lost: int = 0) -> None:
        self.count = 5
        self.lost = lost

    async def Ticks(self, request: pb.TicksRequest, context: object) -> pb.TicksResponse:  # noqa: N802
        answer = pb.TicksResponse(last=self.count, lost=self.lost if request.after else 0)
        for number in range(request.after, self.count):
            part = pb.TicksResponse.Part(job_id=f"request-{number}/a1b2", rows=3, step=2)
            answer.ticks.add(
                worker="w0",
                stage=worker_pb2.STAGE_DENOISE,
                status=worker_pb2.TICK_STATUS_FAILED if number == 6 else worker_pb2.TICK_STATUS_OK,
                start_unix_s=1000.0 + number,
                seconds=0.5,
                rows=3,
                bucket=4,
                parts=[part],
            )
        self.count += 1
        return answer


@asynccontextmanager
async def ticking(folder: Path, batcher: TickingBatcher) -> AsyncIterator[str]:
    server = grpc.aio.server()
    batcher_pb2_grpc.add_BatcherServicer_to_server(batcher, server)
    address = f"unix:{folder}/b.sock"
    server.add_insecure_port(address)
    await server.start()
    yield address
    await server.stop(None)


async def test_ticks_of_the_run_are_seen_with_their_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_LOOK_S", 0.01)
    batcher = TickingBatcher()  # type: ignore[abstract]  # it answers one call alone
    async with ticking(tmp_path, batcher) as address, watched(Watch(batcher=address), lambda: 1004.75) as seen:
        pass
    numbers = [int(tick.start_s + 1004.75 - 1000) for tick in seen.ticks]
    assert numbers == [5]  # of those before the run nothing is seen
    (tick,) = seen.ticks
    assert (tick.worker, tick.stage, tick.start_s, tick.seconds, tick.is_ok) == ("w0", "denoise", 0.25, 0.5, True)
    assert tick.shares == (Share("request-5", 3, 2),)
    assert seen.lost_ticks == 0


async def test_ticks_that_ended_before_the_run_began_are_none_of_it(tmp_path: Path) -> None:
    async with ticking(tmp_path, TickingBatcher()) as address:  # type: ignore[abstract]  # one call alone
        seen = await seen_by(Watch(batcher=address), 1006.0)
    assert seen.ticks == []


async def test_lost_ticks_are_counted_and_too_many_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "MAX_TICKS", 0)
    async with ticking(tmp_path, TickingBatcher(lost=7)) as address:  # type: ignore[abstract]  # one call alone
        seen = await seen_by(Watch(batcher=address))
    assert seen.ticks == []
    assert seen.lost_ticks == 8


async def test_counters_are_read_before_and_after() -> None:
    with metrics_of([metrics_page(10), metrics_page(11)]) as url:
        async with watched(Watch(metrics=url), lambda: 0.0) as seen:
            assert seen.work is None
    assert seen.work is not None
    assert seen.work.stages["denoise"].ticks == 2
    assert seen.notes == []


async def test_a_batcher_that_began_anew_is_a_note() -> None:
    with metrics_of([metrics_page(10), metrics_page(11, started=2000.0)]) as url:
        seen = await seen_by(Watch(metrics=url))
    assert "began anew" in seen.notes[0]


async def test_what_cannot_be_seen_is_a_note_and_no_error(tmp_path: Path) -> None:
    watch = Watch("http://127.0.0.1:1/metrics", f"unix:{tmp_path}/none.sock")
    seen = await seen_by(watch)
    assert (seen.work, seen.ticks) == (None, [])
    assert [note.split(":")[0] for note in seen.notes] == [
        "no metrics from http",
        "no ticks from the batcher at unix",
    ]


def test_counters_know_no_stage_that_is_not_there() -> None:
    empty = Counters(1.0, 0, {}, {})
    assert work_between(empty, read_counters(metrics_page(1, started=1.0))).stages["denoise"].ticks == 2
