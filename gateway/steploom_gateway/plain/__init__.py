"""Plain models in front of the Open Inference Protocol: any tensors in and out, batched by the batcher."""
