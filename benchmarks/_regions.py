"""Who makes regions of a photo: hggraph, and every peer that is installed, each at its usual settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from hggraph import SoftSLIC, region_graph
from hggraph.benchmarks._measure import Report, reason

# isort: split
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

__all__ = ["FAST", "OURS", "PEERS", "hard_graph", "learned", "ours", "peers", "soft_graph"]

OURS, FAST = "hggraph", "fast-slic"
Maker = Callable[[np.ndarray, int], np.ndarray]  # pixels (H, W, 3), bytes, and a number of regions -> labels (H, W)


def clusterer(num_regions: int, *, hard: bool = False) -> SoftSLIC:
    """Return what makes our regions of a photo."""
    return SoftSLIC(num_regions=num_regions, feature_scale="photo", hard=hard).eval()


def ours(photo: Tensor, num_regions: int) -> Tensor:
    """Return our labels ``(H, W)`` of a photo ``(3, H, W)`` in [0, 1]."""
    with torch.inference_mode():
        return clusterer(num_regions, hard=True)(photo[None]).labels[0]


def soft_graph(photo: Tensor, num_regions: int) -> Data:
    """Return the typed graph of a photo's soft regions."""
    with torch.inference_mode():
        return region_graph(photo[None], clusterer=clusterer(num_regions))[0]


def hard_graph(photo: Tensor, num_regions: int) -> Data:
    """Return the typed graph of a photo's labels."""
    with torch.inference_mode():
        return region_graph(photo[None], clusterer=clusterer(num_regions, hard=True))[0]


def learned(run: Path) -> Callable[[Tensor, int], Tensor]:
    """Return what makes labels by the features that a run of ``hggraph fit`` has learned."""
    from hggraph.engine import load_clusterer

    slic = load_clusterer(run)

    def labels(photo: Tensor, num_regions: int) -> Tensor:
        slic.num_regions = num_regions
        with torch.inference_mode():
            return slic(photo[None]).labels[0]

    return labels


def scikit_image(zero: bool = False) -> Maker:
    from skimage.segmentation import slic

    return lambda pixels, n: slic(pixels, n_segments=n, compactness=10, slic_zero=zero, start_label=0)


def fast_slic() -> Maker:
    from fast_slic import Slic

    with suppress(ImportError):  # another processor
        from fast_slic.avx2 import SlicAvx2 as Slic
    # a new one each time: it would go on from the last photo's centres
    return lambda pixels, n: Slic(num_components=n, compactness=10, num_threads=torch.get_num_threads()).iterate(pixels)


def opencv(kind: str) -> Maker:
    import cv2

    def smooth(pixels: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(cv2.GaussianBlur(pixels, (3, 3), 0), cv2.COLOR_RGB2LAB)  # as its documentation advises

    def labels(pixels: np.ndarray, n: int) -> np.ndarray:
        cv2.setNumThreads(torch.get_num_threads())
        side = max(1, round((pixels.shape[0] * pixels.shape[1] / n) ** 0.5))
        if kind == "SLIC":
            made = cv2.ximgproc.createSuperpixelSLIC(smooth(pixels), cv2.ximgproc.SLIC, side, 10.0)
        else:
            made = cv2.ximgproc.createSuperpixelLSC(smooth(pixels), side, 0.075)
        made.iterate(10)
        made.enforceLabelConnectivity(25)
        return made.getLabels()

    if kind != "SEEDS":
        return labels

    def blocks(asked: int, height: int, width: int) -> object:
        return cv2.ximgproc.createSuperpixelSEEDS(width, height, 3, asked, 4, 2, 5, False)

    @cache
    def asked_for(n: int, height: int, width: int) -> int:
        """It makes as many as its grids of blocks allow: ask for what comes nearest to n."""
        tried = sorted({round(n * factor) for factor in np.geomspace(0.6, 2.5, 60)})
        return min(tried, key=lambda asked: abs(blocks(asked, height, width).getNumberOfSuperpixels() - n))

    def seeds(pixels: np.ndarray, n: int) -> np.ndarray:
        made = blocks(asked_for(n, *pixels.shape[:2]), *pixels.shape[:2])
        made.iterate(pixels, 10)
        return made.getLabels()

    return seeds


PEERS: dict[str, Callable[[], Maker]] = {
    FAST: fast_slic,
    "scikit-image slic": scikit_image,
    "scikit-image slic_zero": lambda: scikit_image(zero=True),
    "OpenCV SLIC": lambda: opencv("SLIC"),
    "OpenCV LSC": lambda: opencv("LSC"),
    "OpenCV SEEDS": lambda: opencv("SEEDS"),
}


def peers(report: Report) -> dict[str, Maker]:
    """Return the peers that work here; the reasons of the others stand in the report."""
    found = {}
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name, make in PEERS.items():
        try:
            maker = make()
            assert maker(pixels, 12).shape == (48, 64)
        except Exception as error:  # a peer of any kind may be missing or broken in any way
            report.absent[f"{name}'s labels"] = reason(error)
        else:
            found[name] = maker
    return found
