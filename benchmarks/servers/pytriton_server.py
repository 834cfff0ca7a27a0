"""The model behind pytriton: NVIDIA Triton Inference Server as its front, the model in this Python process."""

from __future__ import annotations

import numpy as np
from bench_model import Items, Model, wanted
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

if __name__ == "__main__":
    said = wanted()
    model = Model()

    @batch
    def infer(**inputs: Items) -> list[Items]:
        """[items, bytes] in and out."""
        return [model.run(inputs["INPUT0"])]

    config = TritonConfig(
        grpc_port=said["port"],
        http_port=said["more_ports"][0],
        metrics_port=said["more_ports"][1],
        allow_metrics=False,
        http_address="127.0.0.1",
        grpc_address="127.0.0.1",
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="identity",
            infer_func=[infer] * said["instances"],
            inputs=[Tensor(name="INPUT0", dtype=np.uint8, shape=(-1,))],
            outputs=[Tensor(name="OUTPUT0", dtype=np.uint8, shape=(-1,))],
            config=ModelConfig(
                max_batch_size=said["max_batch"],
                batcher=DynamicBatcher(max_queue_delay_microseconds=int(1000 * said["delay_ms"])),
            ),
        )
        triton.serve()
