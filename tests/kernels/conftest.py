"""Kernels are tested where Triton is: it comes with PyTorch on Linux and is not required elsewhere."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["*.py"]
