"""Taps: heads on what lies inside a network, there in training alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.models._network import Clustered, SegmentationNetwork
from hggraph.models.heads import fcn_head
from hggraph.models.hrnet_trunk import side_by_side
from hggraph.nn import HGStage
from hggraph.nn._conv import conv_norm_relu
from hggraph.schemes.hs3.region_tap import RegionLogits

__all__ = ["TappedNetwork", "tapped"]

PROBE = 128  # pixels along each side of the image by which a tap's channels are found


class TappedNetwork(SegmentationNetwork):
    """A segmentation network with heads on some of its modules; see `tapped`."""

    def __init__(self, net: SegmentationNetwork, taps: Mapping[str, str], tap_classes: Mapping[str, int]) -> None:
        super().__init__(net.in_channels, net.num_classes)
        self.multiple = net.multiple
        self.net = net
        self.taps = {f"tap_{name}": path for name, path in taps.items()}
        if set(tap_classes) != set(taps):
            raise ValueError(f"`tap_classes` must name the taps {sorted(taps)}, got {sorted(tap_classes)}.")
        modules = dict(net.named_modules())
        for path in self.taps.values():
            if path not in modules:
                near = difflib.get_close_matches(path, modules, n=3, cutoff=0.3)
                raise ValueError(f"`taps` must name modules of the network, got {path!r}; the nearest are {near}.")
        heads = {}
        for name, x in self._probe().items():
            classes = tap_classes[name.removeprefix("tap_")]
            check_positive("tap_classes", classes, 2)
            heads[name] = _region_head(x.shape[1], classes) if x.dim() == 3 else fcn_head(x.shape[1], classes)
        self.heads = nn.ModuleDict(heads)

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Any], list[Clustered]]:
        """Return what the network does and, in training, the logits of the taps."""
        if not (self.training and self.heads):
            return self.net.predict(x, attention)
        with self._recording() as found:
            logits, clustered = self.net.predict(x, attention)
        for name, head in self.heads.items():
            features = found[name]
            out = head(features)
            if features.dim() == 3:
                out = RegionLogits(out, found[f"{name}.assignment"], (x.shape[2], x.shape[3]))
            logits[name] = out
        return logits, clustered

    def drop_training_parts(self) -> None:
        """Remove the taps, and what else only training uses."""
        self.heads = nn.ModuleDict()
        self.net.drop_training_parts()

    def compose(self) -> None:
        """Compose what the network can."""
        self.net.compose()

    def _probe(self) -> dict[str, Tensor]:
        """Return what the taps see of one small image."""
        modes = [(part, part.training) for part in self.net.modules()]
        self.net.eval()
        parameter = next(self.net.parameters())
        x = torch.zeros(1, self.in_channels, PROBE, PROBE, dtype=parameter.dtype, device=parameter.device)
        try:
            with torch.no_grad(), self._recording() as found:
                self.net.predict(x, None)
        finally:
            for part, training in modes:
                part.training = training
        missing = [path for name, path in self.taps.items() if name not in found]
        if missing:
            raise ValueError(f"`taps` must name modules that the network runs, got {missing}, which it does not.")
        return {name: found[name] for name in self.taps}

    @contextmanager
    def _recording(self) -> Iterator[dict[str, Any]]:
        """Fill a dict with what the taps see: maps ``(B, C, h, w)``, or regions ``(B, C, R)`` and their assignment."""
        found: dict[str, Any] = {}
        handles = []
        for name, path in self.taps.items():
            module, stage = self.net.get_submodule(path), _stage_around(self.net, path)
            if stage is None:
                handles.append(module.register_forward_hook(_keep_map(found, name)))
                continue
            handles.append(stage.clusterer.register_forward_hook(_keep(found, f"{name}.assignment")))
            whole = module is stage
            if whole:  # what enters it: the regions before its first block
                handles.append(stage.blocks[0].register_forward_pre_hook(_keep_input(found, name)))
            else:
                handles.append(module.register_forward_hook(_keep_regions(found, name)))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def tapped(net: nn.Module, taps: dict[str, str], tap_classes: dict[str, int] | None = None) -> TappedNetwork:
    """Put heads on modules of a segmentation network, for deep supervision and HS3 (HS3 Sec. 3).

    In training the network returns ``"tap_<name>"`` for each tap beside its own outputs: of a map, logits of the
    images' size, from the head that `fcn_head` makes; of an HG stage, `RegionLogits`: its regions are classified, and
    nothing is brought to pixels. In eval mode, folded or exported it is the network itself: the taps cost nothing.

    Args:
        net: A network of `hggraph.models`.
        taps: Names of modules by the names of the taps: ``{"2": "trunk.stage2"}`` in an HRNet (several branches are
            put side by side at the size of the first), ``{"2": "trunk.stages.1"}`` in a ResNet, ``{"hg": "trunk.hg"}``
            for the regions that enter an HG stage, or ``"trunk.hg.blocks.1"`` for those that leave one of its blocks.
        tap_classes: Classes of each tap, at least 2; None: the network's.

    Returns:
        The network with taps; `net` is its part ``net``.

    Raises:
        ValueError: if a module is not there (the nearest names are told) or is not run, or gives no features.
        TypeError: if `net` is no `SegmentationNetwork`.

    Note:
        Makes one prediction of 128 x 128 pixels to learn the taps' channels.

    Example:
        >>> from hggraph.models import hg_resnet
        >>> taps = {"2": "trunk.stages.1", "hg": "trunk.hg"}
        >>> net = tapped(hg_resnet(18, num_classes=5, aux=False), taps, {"2": 2, "hg": 3})
        >>> out = net.train()(torch.rand(2, 3, 64, 64))
        >>> sorted(out), out["tap_2"].shape, out["tap_hg"].logits.shape
        (['out', 'tap_2', 'tap_hg'], torch.Size([2, 2, 64, 64]), torch.Size([2, 3, 1]))
        >>> sorted(net.eval()(torch.rand(1, 3, 64, 64)))
        ['out']
    """
    if not isinstance(net, SegmentationNetwork):
        raise TypeError(f"`net` must be a network of hggraph.models, got {type(net).__name__}.")
    if not taps:
        raise ValueError("`taps` must name at least one module, got none.")
    return TappedNetwork(net, taps, dict.fromkeys(taps, net.num_classes) if tap_classes is None else tap_classes)


def _stage_around(net: nn.Module, path: str) -> Any:
    """Return the HG stage that a module is or lies in, or None."""
    parts = path.split(".")
    around = (net.get_submodule(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    return next((module for module in around if isinstance(module, HGStage)), None)


def _keep(found: dict[str, Any], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        found[name] = output

    return hook


def _keep_map(found: dict[str, Any], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        maps = list(output) if isinstance(output, list | tuple) else [output]
        if not all(isinstance(x, Tensor) and x.dim() == 4 for x in maps):
            raise ValueError(f"{name} must give maps (B, C, h, w), got {type(output).__name__}; choose another module.")
        found[name] = maps[0] if len(maps) == 1 else side_by_side(maps)

    return hook


def _keep_input(found: dict[str, Any], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any) -> None:
        found[name] = inputs[0].transpose(1, 2)

    return hook


def _keep_regions(found: dict[str, Any], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() != 3:
            raise ValueError(f"{name} must give regions (B, R, C), got {type(output).__name__}; choose a block.")
        found[name] = output.transpose(1, 2)

    return hook


class _Regions(nn.Module):
    """Layers for maps, on regions ``(B, C, R)``."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.layers(z[..., None])[..., 0]
        return out


def _region_head(channels: int, classes: int, dropout: float = 0.1) -> nn.Module:
    """Return `fcn_head` for regions, which have no neighbours in a row: 1x1 in place of 3x3."""
    width = channels // 4
    return _Regions(
        nn.Sequential(*conv_norm_relu(channels, width), nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))
    )
