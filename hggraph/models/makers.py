"""The functions that make networks, by name: for commands and for model folders, which can name nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hggraph.cluster import Cells, SoftSLIC
from hggraph.cluster.cells import Voronoi
from hggraph.models._network import SegmentationNetwork
from hggraph.models.convert import convert
from hggraph.models.deeplab_v3_plus import deeplab_v3_plus
from hggraph.models.gald import gald
from hggraph.models.hg_cnn import hg_cnn
from hggraph.models.hg_detector import hg_detector
from hggraph.models.hg_hrnet import hg_hrnet
from hggraph.models.hg_orientation import hg_orientation
from hggraph.models.hg_resnet import hg_resnet, resnet_trunk
from hggraph.models.hg_resunet import hg_resunet
from hggraph.models.hg_unity import hg_unity
from hggraph.models.hs3_fuse import hs3_fuse
from hggraph.models.pyconv_inception import pyconv_inception
from hggraph.models.pyconv_resnet import pyconv_hg_resnet, pyconv_resnet
from hggraph.models.pyconv_resnet3d import pyconv_resnet3d
from hggraph.models.pyconv_segnet import pyconv_segnet
from hggraph.models.pyconv_ssd import pyconv_ssd
from hggraph.models.specialize_fuse import specialize_fuse
from hggraph.nn import RegionEmbedding

__all__ = ["MAKERS", "NETWORKS", "PARTS", "Maker", "task_of"]

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


def timm_network(model_name: str, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> nn.Module:
    """Make a classifier of timm by its name, without weights: ``timm.create_model`` for names from anyone."""
    import timm

    if not timm.is_model(model_name):  # a name on a hub or of a folder is none
        raise ValueError(f"timm has no network {model_name!r}.")
    net: nn.Module = timm.create_model(
        model_name, pretrained=False, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate
    )
    return net


CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "pyconv_resnet": pyconv_resnet,
    "pyconv_hg_resnet": pyconv_hg_resnet,
    "pyconv_inception": pyconv_inception,
    "pyconv_resnet3d": pyconv_resnet3d,
    "timm.create_model": timm_network,
    "convert": convert,
}
DETECTORS: dict[str, Callable[..., nn.Module]] = {"pyconv_ssd": pyconv_ssd, "hg_detector": hg_detector}
CLUSTERERS: dict[str, Callable[..., nn.Module]] = {"SoftSLIC": SoftSLIC, "Cells": Cells, "Voronoi": Voronoi}

NETWORKS: dict[str, Callable[..., Any]] = {**MAKERS, **CLASSIFIERS, **DETECTORS, **CLUSTERERS}
# what networks are made of beside numbers and text
PARTS: dict[str, Callable[..., Any]] = {
    **NETWORKS,
    "resnet_trunk": resnet_trunk,
    "RegionEmbedding": RegionEmbedding,
    "Conv2d": nn.Conv2d,
}


def task_of(model: str) -> str:
    """Return what a network of `NETWORKS` is for: segmentation, classification, detection or regions."""
    for task, names in (("classification", CLASSIFIERS), ("detection", DETECTORS), ("regions", CLUSTERERS)):
        if model in names:
            return task
    return "segmentation"
