"""Speed and memory against the best there is: ``python -m benchmarks.bench_<what>`` from the repository root."""
