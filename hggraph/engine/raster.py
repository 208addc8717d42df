"""The older name of `hggraph.inference.raster`."""

from hggraph.inference.raster import *  # noqa: F403
