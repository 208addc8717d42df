"""Speed and memory against the best there is: ``hggraph bench``, or ``python -m hggraph.benchmarks.bench_<what>``."""
