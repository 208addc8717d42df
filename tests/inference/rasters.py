"""Rasters to predict and a network for them."""

import numpy as np
import rasterio
import torch
from rasterio import Affine
from torch import nn

from hggraph.models._network import SegmentationNetwork

PLACE = {"crs": "EPSG:32633", "transform": Affine(2.0, 0.0, 500_000.0, 0.0, -2.0, 5_000_000.0)}
STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def network(bands=3, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(bands, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, classes, 3, padding=1))


class OneByOne(SegmentationNetwork):
    """The smallest network of the project's kind."""

    def predict(self, x, attention):
        return {"out": x[:, : self.num_classes]}, []


def write(path, array, **options):
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype}
    with rasterio.open(path, "w", **{**profile, **PLACE, **options}) as file:
        file.write(array)
    return path


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.profile


def pixels(height, width, bands=3, dtype="uint8", seed=0):
    top = np.iinfo(dtype).max if np.dtype(dtype).kind != "f" else 1
    values = np.random.default_rng(seed).random((bands, height, width))
    return (values * top).astype(dtype)


def normalised(array, full_scale, mean, std):
    x = torch.from_numpy(array.astype(np.float32)) / full_scale
    return (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
