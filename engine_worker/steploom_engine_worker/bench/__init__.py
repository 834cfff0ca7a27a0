"""Benchmarks of the networks on a GPU."""
