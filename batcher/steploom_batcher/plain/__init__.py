"""Plain models: tensors in, tensors out, batched by whole requests as Triton's dynamic batcher does."""
