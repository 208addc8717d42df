"""Specialize and fuse: each level of a pyramid of outputs learns the cells that no coarser one has (ICCV 2021)."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.schemes.specialize.fuse import fuse as fuse
from hggraph.schemes.specialize.fuse import levels_used as levels_used
from hggraph.schemes.specialize.loss import SpecializeLoss as SpecializeLoss
from hggraph.schemes.specialize.relabel import RULES as RULES
from hggraph.schemes.specialize.relabel import relabel as relabel
from hggraph.schemes.specialize.steer import unity_attention as unity_attention
from hggraph.schemes.specialize.steer import unity_regions as unity_regions
from hggraph.schemes.specialize.targets import unity_pyramid as unity_pyramid
from hggraph.schemes.specialize.unity_loss import UnityOutputLoss as UnityOutputLoss
