"""Speed and memory against the best there is: ``hggraph bench``, or one file, ``python -m hggraph.benchmarks.bench_<what>``."""
