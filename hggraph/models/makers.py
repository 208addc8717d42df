"""The functions that make segmentation networks, by name: for commands and for published networks."""

from __future__ import annotations

from collections.abc import Callable

from hggraph.models._network import SegmentationNetwork
from hggraph.models.deeplab_v3_plus import deeplab_v3_plus
from hggraph.models.gald import gald
from hggraph.models.hg_cnn import hg_cnn
from hggraph.models.hg_hrnet import hg_hrnet
from hggraph.models.hg_orientation import hg_orientation
from hggraph.models.hg_resnet import hg_resnet
from hggraph.models.hg_resunet import hg_resunet
from hggraph.models.hg_unity import hg_unity
from hggraph.models.hs3_fuse import hs3_fuse
from hggraph.models.pyconv_segnet import pyconv_segnet
from hggraph.models.specialize_fuse import specialize_fuse

__all__ = ["MAKERS", "Maker"]

Maker = Callable[..., SegmentationNetwork]
MAKERS: dict[str, Maker] = {
    "hg_resnet": hg_resnet,
    "hg_cnn": hg_cnn,
    "hg_hrnet": hg_hrnet,
    "hg_resunet": hg_resunet,
    "hg_orientation": hg_orientation,
    "gald": gald,
    "pyconv_segnet": pyconv_segnet,
    "deeplab_v3_plus": deeplab_v3_plus,
    "hg_unity": hg_unity,
    "hs3_fuse": hs3_fuse,
    "specialize_fuse": specialize_fuse,
}
