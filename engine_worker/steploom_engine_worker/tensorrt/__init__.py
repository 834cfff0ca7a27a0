"""The engine on TensorRT: plans that were built before, driven through cuda-python, without torch."""
