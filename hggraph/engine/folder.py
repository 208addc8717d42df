"""The older name of `hggraph.inference.folder`."""

from hggraph.inference.folder import *  # noqa: F403
