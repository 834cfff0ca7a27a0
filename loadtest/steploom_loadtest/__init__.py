"""Load, simulation and benchmarks of the scheduler."""
