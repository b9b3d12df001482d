"""What the benchmarks share: results and how they are shown, the machine, a platform to submit to."""
