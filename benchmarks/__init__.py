"""Measurements: each module here is a benchmark, but `write` runs them all and writes `docs/benchmarks.md`."""
