"""One instance of a model: a thread with a program of its own, which runs batches as they come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from steploom_common.arena import ArenaViews
from steploom_engine_worker.errors import is_fatal, is_refused_memory
from steploom_engine_worker.plain.errors import WrongItem, WrongOutput
from steploom_engine_worker.plain.inputs import Gatherer
from steploom_engine_worker.plain.outputs import Answerer, Pieces, entry, executed
from steploom_engine_worker.plain.program import Origin, Parameters, Program
from steploom_engine_worker.plain.program_loader import load_program
from steploom_engine_worker.plain.spec import Placement
from steploom_engine_worker.plain.warm_up_config import WarmUp
from steploom_engine_worker.plain.work import Work, tell
from steploom_protos.worker.v1 import plain_pb2 as pb

log = logging.getLogger(__name__)

_MAX_ANSWER = 250 * 2**20  # bytes; a larger message would break the stream for all others

Queue = SimpleQueue[Work | None]  # None: one instance ends


class Instance:
    """Loads, warms up, and runs what comes out of the queue until that says to end.

    Args:
        name: of the thread.
        origin: of the program.
        placement: where it runs.
        warm_ups: batches before the first.
        queue: shared with the other instances of the version.
        views: shared memory of other processes.
        on_fatal: hears of a device that is lost: the process is to end.
    """

    def __init__(
        self,
        name: str,
        origin: Origin,
        placement: Placement,
        warm_ups: tuple[WarmUp, ...],
        queue: Queue,
        views: ArenaViews,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.ready: Future[None] = Future()  # loaded and warm; or what has kept it from that
        self.ended: Future[None] = Future()  # nothing runs any more
        for future in (self.ready, self.ended):
            future.set_running_or_notify_cancel()  # who waits for them may give up; the thread does not
        self._origin = origin
        self._placement = placement
        self._warm_ups = warm_ups
        self._queue = queue
        self._on_fatal = on_fatal
        self._gatherer = Gatherer(origin.spec, views)
        self._answerer = Answerer(origin.spec, views)
        # a daemon: a model that hangs does not keep the process
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __repr__(self) -> str:
        return f"Instance({self._thread.name}, ready={self.ready.done()}, ended={self.ended.done()})"

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def _run(self) -> None:
        try:
            try:
                program = load_program(self._origin, self._placement)
                self._warm_up(program)
            except BaseException as error:  # a model that wants to exit, too
                self.ready.set_exception(error)
                return
            self.ready.set_result(None)
            self._serve(program)
            self._close(program)
        finally:
            self.ended.set_result(None)

    def _warm_up(self, program: Program) -> None:
        program.warm_up()
        for warm_up in self._warm_ups:
            start = time.monotonic()
            for _ in range(warm_up.count):
                rows = [warm_up.rows]
                outputs = program.infer(dict(warm_up.inputs), Parameters([{}], rows))
                self._answerer.answer(outputs, [pb.Item()], rows)
            log.info("%s: warm-up %r took %.3f s", self._thread.name, warm_up.name, time.monotonic() - start)

    def _serve(self, program: Program) -> None:
        """Runs batches until it is told to end. No batch takes the thread with it, whatever it raises."""
        work: Work | None = None
        while True:
            try:
                work = self._queue.get()
                if work is None:
                    return
                work.reply(self._answer(program, work))
                work = None
            except BaseException as error:
                # raised beside the model's own call: an exception that it has set off in its thread for later
                log.critical("%s: between batches", self._thread.name, exc_info=error)
                if work is not None:
                    work.reply(_failed(work, error))

    def _answer(self, program: Program, work: Work) -> bytes:
        """Runs a batch; the answer, serialised here so that the event loop need not."""
        done = pb.BatchDone(batch_id=work.batch.batch_id, start_unix_ns=time.time_ns())
        taken_ns = time.monotonic_ns()
        done.wait_ns = taken_ns - work.arrived_ns
        items = list(work.batch.items)
        answers: list[Pieces] = []
        try:
            answers = self._compute(program, done, items, taken_ns)
        except WrongItem as error:
            answers = self._sort_out(program, done, items, error, work, taken_ns)
        except BaseException as error:
            self._fail(done, error, work)
        answer = executed(done, answers)
        return answer if len(answer) <= _MAX_ANSWER else _failed(work, WrongOutput(_too_large(len(answer))))

    def _compute(self, program: Program, done: pb.BatchDone, items: list[pb.Item], start_ns: int) -> list[Pieces]:
        """The answers of all items; their times go into `done`."""
        gathered = self._gatherer.gather(items)
        gathered_ns = time.monotonic_ns()
        done.compute_input_ns = gathered_ns - start_ns
        outputs = program.infer(gathered.arrays, gathered.parameters)
        inferred_ns = time.monotonic_ns()
        done.compute_infer_ns = inferred_ns - gathered_ns
        answers = self._answerer.answer(outputs, items, gathered.rows)
        done.compute_output_ns = time.monotonic_ns() - inferred_ns
        return answers

    def _sort_out(
        self,
        program: Program,
        done: pb.BatchDone,
        items: list[pb.Item],
        error: WrongItem,
        work: Work,
        start_ns: int,
    ) -> list[Pieces]:
        """Runs those of a batch that are as they must be, without those that are not."""
        faults = {at: fault for at, item in enumerate(items) if (fault := self._fault(item)) is not None}
        good = [item for at, item in enumerate(items) if at not in faults]
        if not faults or not good:  # each alone would do, and together they do not; or none would
            tell(done.error, error, work)
            return []
        answers: list[Pieces] = []
        failed = pb.ItemDone()
        try:
            answers = self._compute(program, done, good, start_ns)
        except BaseException as worse:
            tell(failed.error, worse, work)
            self._look_at(worse)
            answers = [(entry(failed),)] * len(good)
        rest = iter(answers)
        return [self._told(faults[at], work) if at in faults else next(rest) for at in range(len(items))]

    def _told(self, fault: WrongItem, work: Work) -> Pieces:
        answer = pb.ItemDone()
        tell(answer.error, fault, work)
        return (entry(answer),)

    def _fault(self, item: pb.Item) -> WrongItem | None:
        """What is wrong with an item by itself."""
        try:
            self._gatherer.gather([item])
        except WrongItem as error:
            return error
        return None

    def _fail(self, done: pb.BatchDone, error: BaseException, work: Work) -> None:
        tell(done.error, error, work)
        self._look_at(error)

    def _look_at(self, error: BaseException) -> None:
        """Ends the process where the device is lost."""
        if self._placement.gpu is not None and is_fatal(error) and not is_refused_memory(error):
            self._on_fatal(error)

    def _close(self, program: Program) -> None:
        try:
            program.close()
        except BaseException as error:
            log.error("%s: its end", self._thread.name, exc_info=error)


def _too_large(size: int) -> str:
    return f"the outputs of the batch have {size} bytes, must have at most {_MAX_ANSWER} without shared memory"


def _failed(work: Work, error: BaseException) -> bytes:
    done = pb.BatchDone(batch_id=work.batch.batch_id)
    tell(done.error, error, work)
    return executed(done, [])
