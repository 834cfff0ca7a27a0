"""One edit: from an order that is within its bounds to the events that its caller sees."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import cast

from steploom_common.arena import Pixels
from steploom_common.errors import SteploomError
from steploom_common.tracing import metadata_of
from steploom_gateway.caller import current_caller
from steploom_gateway.catalogue import Model
from steploom_gateway.codec import Format
from steploom_gateway.observation import Observation
from steploom_gateway.pool import CodecPool, Prepared, Written
from steploom_gateway.submission import Submission, Submissions, inline_picture
from steploom_gateway.validation import EditOrder
from steploom_protos.batcher.v1 import batcher_pb2
from steploom_protos.v1 import image_pb2


@dataclass(frozen=True)
class Tools:
    """What every edit uses."""

    codec: CodecPool
    submissions: Submissions
    preview_side: int  # pixels of a preview's longer side at most


class EditJob:
    """One edit.

    Args:
        tools: what all edits share.
        order: what is asked for.
        model: that will draw it.
        seen: the call that it answers.
    """

    def __init__(self, tools: Tools, order: EditOrder, model: Model, seen: Observation) -> None:
        self._tools = tools
        self._order = order
        self._model_size = (model.height, model.width)
        self._seen = seen
        self._seed = secrets.randbits(64) if order.seed is None else order.seed
        self._admitted = batcher_pb2.JobEvent.Admitted()
        self._finished: batcher_pb2.JobEvent.Finished | None = None

    async def events(self, deadline_unix_s: float, is_watched: bool) -> AsyncGenerator[image_pb2.EditEvent]:
        """Draws the picture; the last event is `done`.

        Args:
            deadline_unix_s: seconds since the epoch; 0: the tier's own.
            is_watched: whether progress and previews are sent.

        Raises:
            SteploomError: the picture cannot be read, or the batcher's refusal or failure.
        """
        came_s = self._seen.elapsed_s
        prepared = await self._tools.codec.prepare(self._order.picture, self._order.size_rule, self._model_size)
        self._seen.prepare_s = self._seen.elapsed_s - came_s
        self._order = dataclasses.replace(self._order, picture=b"")  # not held while the job waits
        job = self._job(deadline_unix_s, is_watched)
        async with self._tools.submissions.submit(job, prepared.pixels, metadata_of(self._seen.span)) as submission:
            while happened := await submission.next_event():
                event = await self._translated(happened, prepared)
                if event:
                    yield event
            drawn = self._drawn(submission)
        drawn_s = self._seen.elapsed_s
        written = await self._tools.codec.write(drawn, prepared.frame, self._order.output_format)
        self._seen.write_s = self._seen.elapsed_s - drawn_s
        yield image_pb2.EditEvent(done=self._response(written))

    def _job(self, deadline_unix_s: float, is_watched: bool) -> batcher_pb2.SubmitRequest:
        order = self._order
        return batcher_pb2.SubmitRequest(
            # the caller's id need not be unique
            job_id=f"{self._seen.request_id}/{secrets.token_hex(6)}",
            tier=order.tier,
            model=order.model,
            instruction=order.instruction,
            steps=order.steps,
            guidance_scale=order.guidance_scale,
            image_guidance_scale=order.image_guidance_scale,
            seed=self._seed,
            sampler=cast(image_pb2.Sampler, order.sampler),
            deadline_unix_s=deadline_unix_s,
            preview_every=order.preview_every if is_watched else 0,
            adapter=order.adapter,
            without_progress=not is_watched,
            caller=current_caller().name,
        )

    async def _translated(self, event: batcher_pb2.JobEvent, prepared: Prepared) -> image_pb2.EditEvent | None:
        match event.WhichOneof("event"):
            case "admitted":
                self._admitted = event.admitted
                self._seen.tier = event.admitted.tier
                queued = image_pb2.EditEvent.Queued(
                    request_id=self._seen.request_id, predicted_s=event.admitted.predicted_s
                )
                return image_pb2.EditEvent(queued=queued)
            case "started":
                return image_pb2.EditEvent(started=image_pb2.EditEvent.Started())
            case "step":
                return image_pb2.EditEvent(step=await self._step(event.step, prepared))
            case "finished":
                self._finished = event.finished
        return None

    async def _step(self, happened: batcher_pb2.JobEvent.Step, prepared: Prepared) -> image_pb2.EditEvent.Step:
        step = image_pb2.EditEvent.Step(step=happened.step, steps=happened.steps)
        if happened.HasField("preview"):
            pixels = inline_picture(happened.preview)
            step.preview.encoded = await self._tools.codec.write_preview(
                pixels, self._model_size, prepared.frame, self._tools.preview_side
            )
        return step

    def _drawn(self, submission: Submission) -> Pixels:
        if self._finished is None:
            raise SteploomError("the batcher ended the job without a picture")
        if (self._finished.pixels.height, self._finished.pixels.width) != self._model_size:
            raise SteploomError("the batcher sent a picture of another size than the model's")
        return submission.picture(self._finished.pixels)

    def _response(self, written: Written) -> image_pb2.EditResponse:
        assert self._finished
        timings = self._finished.timings
        timings.total_s = self._seen.elapsed_s
        self._seen.timings = timings
        return image_pb2.EditResponse(
            image=_image(written, self._order.output_format),
            format=cast(image_pb2.ImageFormat, self._order.output_format),
            height=written.height,
            width=written.width,
            seed=self._seed,
            timings=timings,
            request_id=self._seen.request_id,
            model=self._admitted.model,
            tier=self._admitted.tier,
            adapter=self._admitted.adapter,
        )


def _image(written: Written, format: Format) -> image_pb2.Image:
    if format is Format.RAW:
        raw = image_pb2.RawImage(data=written.data, height=written.height, width=written.width)
        return image_pb2.Image(tensor=raw)
    return image_pb2.Image(encoded=written.data)
