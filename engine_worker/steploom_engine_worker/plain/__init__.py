"""The model host: serves plain models, tensors in and tensors out, from a folder in Triton's layout."""
