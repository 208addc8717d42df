"""Any CNN on regions: a stride is a partition."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from hggraph._check import check_positive
from hggraph.nn.on_regions import on_regions

__all__ = ["convert"]

Network = TypeVar("Network", bound=nn.Module)


def convert(
    network: Network,
    *,
    from_stride: int = 8,
    clusterer: nn.Module | Sequence[nn.Module] | None = None,
    pooling: str = "mean",
    directions: str = "birth",
    back: str = "soft",
    nested: bool = True,
    steps: bool = True,
) -> Network:
    """Return a copy of a CNN in which every stride beyond `from_stride` is a level of regions, with the same weights.

    A layer with a stride computes at every pixel of the finer level, and the regions pool the result; outputs of a
    coarser stride come back to the map of `from_stride`. With ``clusterer=Cells(), pooling="sample"`` the regions are
    the stride's own cells, and the network is the strided one, each of its values repeated over a cell.

    Args:
        network: A module called with one image first, for example of torchvision or timm, ``features_only`` or not.
            Parameters and their names stay, and so do its class and methods; regions come and go by hooks.
        from_stride: The last stride that stays one, image pixels per pixel of its map.
        clusterer: Makes the regions of a level: one, of which each level gets a copy (of `Cells` with the level's
            stride as its side), or one for each. None: regions of four pixels whose seeds stand on a grid,
            ``SoftSLIC(4)``, each level clustering the nodes of the one before; with ``steps=False`` ``SoftSLIC()``.
        pooling: ``"mean"``, by area, in global means too; or ``"sample"``, the pixel of a region's seed.
        directions: ``"birth"``, ``"borders"``, ``"geometry"``; see `hggraph.graph.directions.directed`.
        back: ``"soft"``, ``"nearest"`` or ``"bilinear"``; see `hggraph.nn.RegionLevel`.
        nested: Regions of regions; False: each level's regions are of the map of `from_stride`, as regions without a
            grid have to be.
        steps: False: one level, in one jump from the map of `from_stride`, as in HG-Conv; with ``SoftSLIC(64)`` to the
            paper's 1/64. Layers with a stride after the first then have none.

    Returns:
        The copy; `network` stays as it is. Its attribute `region_levels` holds the levels and, after a pass, their
        regions; set ``region_levels.attention`` to say where those of later passes should crowd, and to None to end it.

    Raises:
        TypeError: if `clusterer` is no module, nor a sequence of some.
        ValueError: if there is no stride beyond, or the network has a part that has no form on regions: one that
            upsamples inside, for example, or strides without a layer that says so.

    Note:
        The network runs twice on an image of zeros, to find its strides and to see that it still runs.

    Example:
        >>> import torch, torchvision
        >>> from hggraph.cluster import Cells
        >>> features = torchvision.models.mobilenet_v2().features.eval()
        >>> net = convert(features, from_stride=8, clusterer=Cells(), pooling="sample")
        >>> photo = torch.rand(1, 3, 64, 96)
        >>> with torch.no_grad():
        ...     same = torch.allclose(net(photo)[:, :, ::4, ::4], features(photo), atol=1e-5)
        >>> net(photo).shape, same
        (torch.Size([1, 1280, 8, 12]), True)
    """
    check_positive("from_stride", from_stride)
    out = copy.deepcopy(network)
    levels = on_regions(
        out,
        clusterer,
        from_stride=from_stride,
        pooling=pooling,
        directions=directions,
        back=back,
        nested=nested,
        steps=steps,
    )
    out.region_levels = levels
    return out
