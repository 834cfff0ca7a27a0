"""A GPU and a TensorRT without either: they compute in numpy, as late as is allowed, and fail on command."""
