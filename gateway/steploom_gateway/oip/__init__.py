"""The Open Inference Protocol, in front of the same edits as ImageService."""
