"""The older name of `hggraph.inference.predictor`."""

from hggraph.inference.predictor import *  # noqa: F403
