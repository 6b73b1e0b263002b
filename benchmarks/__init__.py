"""Streams, models, runner and comparison: `python -m benchmarks`."""
