"""What the gateway has served since its start, in plain sums: how often, and how long each part took."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from steploom_protos.v1 import image_pb2


@dataclass
class Sum:
    """How often something was done, and how long it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Once more."""
        self.count += 1
        self.seconds += seconds


@dataclass
class Tally:
    """Edits that have ended, by whatever protocol they came."""

    done: Sum = field(default_factory=Sum)  # from arrival to answer
    failed: Sum = field(default_factory=Sum)  # from arrival to any status but OK; those that were refused count too
    statuses: Counter[str] = field(default_factory=Counter)  # of those failed: how often each gRPC status
    prepare: Sum = field(default_factory=Sum)  # of those done: the picture that was sent becomes the model's
    queue: Sum = field(default_factory=Sum)  # of those done: from admission to the first tick
    encode: Sum = field(default_factory=Sum)  # of those done
    denoise: Sum = field(default_factory=Sum)  # of those done
    decode: Sum = field(default_factory=Sum)  # of those done
    write: Sum = field(default_factory=Sum)  # of those done: the model's picture becomes the answer
    last_unix_s: float = 0.0  # when the last one was done; 0: none yet

    def add_failed(self, elapsed_s: float, status: str) -> None:
        """Counts an edit that has an error, by the name of its gRPC status."""
        self.failed.add(elapsed_s)
        self.statuses[status] += 1

    def add_done(self, elapsed_s: float, prepare_s: float, timings: image_pb2.Timings, write_s: float) -> None:
        """Counts an edit that has its picture."""
        self.done.add(elapsed_s)
        self.prepare.add(prepare_s)
        self.queue.add(timings.queue_s)
        self.encode.add(timings.encode_s)
        self.denoise.add(timings.denoise_s)
        self.decode.add(timings.decode_s)
        self.write.add(write_s)
        self.last_unix_s = time.time()
