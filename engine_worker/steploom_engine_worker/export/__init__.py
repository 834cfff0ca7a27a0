"""Networks of a model as ONNX graphs, for engines that other builders make."""
