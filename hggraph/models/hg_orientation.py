"""HG-Orientation: roads and their orientations from stacked, multi-branch hourglasses that meet on regions."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.cluster import SoftSLIC
from hggraph.models._network import Clustered, SegmentationNetwork, assign
from hggraph.models.hg_resunet import check_focus, focus, residual_unit
from hggraph.nn import HGStage
from hggraph.nn._conv import conv_norm_relu

__all__ = ["HGHourglass", "HGOrientation", "hg_orientation"]

TASKS = ("out", "orientation")


class HGHourglass(nn.Module):
    """A small hourglass with one encoder and a decoder for each task, which meet on regions.

    Args:
        channels: Channels of all maps.
        depth: How often the map is halved.
        tasks: Number of decoders.
        clusterer: What clusters the deepest map; None stays on pixels.

    Shapes:
        - **input:** map ``(B, channels, H, W)``, attention ``(B, H', W')`` *(optional)*
        - **output:** a map of the same shape for each task, and the deepest map with its assignment, or None

    Example:
        >>> import torch
        >>> maps, _ = HGHourglass(8, 1, 2, SoftSLIC(4))(torch.rand(1, 8, 13, 16))
        >>> [tuple(x.shape) for x in maps]
        [(1, 8, 13, 16), (1, 8, 13, 16)]
    """

    def __init__(self, channels: int, depth: int, tasks: int, clusterer: nn.Module | None) -> None:
        super().__init__()
        self.skips = nn.ModuleList([residual_unit(channels, channels) for _ in range(depth)])
        self.downs = nn.ModuleList([residual_unit(channels, channels) for _ in range(depth)])
        self.ups = nn.ModuleList(
            [nn.ModuleList([residual_unit(channels, channels) for _ in range(depth)]) for _ in range(tasks)]
        )
        self.encoder: nn.Module = residual_unit(channels, channels)
        decoders: list[nn.Module] = [residual_unit(channels, channels) for _ in range(tasks)]
        if clusterer is not None:
            self.encoder = HGStage.from_stage(self.encoder.children(), clusterer, fuse=_fuse(channels))
            decoders = [HGStage.from_stage(unit.children(), None, fuse=_fuse(channels)) for unit in decoders]
        self.decoders = nn.ModuleList(decoders)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> tuple[list[Tensor], Clustered | None]:
        """Run the hourglass; see the class for shapes."""
        sides = []
        for skip, down in zip(self.skips, self.downs, strict=True):
            sides.append(skip(x))
            x = down(F.max_pool2d(x, 2, ceil_mode=True))
        clustered = None
        if isinstance(self.encoder, HGStage):
            assignment = assign(self.encoder, x, attention)
            clustered = Clustered("hourglass", x, assignment)
            y = self.encoder(x, assignment=assignment)
            maps = [decoder(y, assignment=assignment, skip=x) for decoder in self.decoders]
        else:
            y = self.encoder(x)
            maps = [decoder(y) for decoder in self.decoders]
        for level in reversed(range(len(sides))):
            side = sides[level]
            for task, units in enumerate(self.ups):
                assert isinstance(units, nn.ModuleList)
                maps[task] = side + F.interpolate(units[level](maps[task]), tuple(side.shape[2:]), mode="nearest")
        return maps, clustered


class _Stack(nn.Module):
    """Branches side by side, a score for each task, and what goes on to the next stack."""

    def __init__(
        self, channels: int, depth: int, classes: list[int], clusterers: list[nn.Module | None], *, last: bool
    ) -> None:
        super().__init__()
        tasks = range(len(classes))
        self.branches = nn.ModuleList([HGHourglass(channels, depth, len(classes), c) for c in clusterers])
        self.units = nn.ModuleList(
            [nn.Sequential(*residual_unit(channels, channels), *conv_norm_relu(channels, channels, 1)) for _ in tasks]
        )
        # the last stack's features go to the heads, nothing goes ahead
        scored = [] if last else classes
        self.scores = nn.ModuleList([nn.Conv2d(channels, number, 1) for number in scored])
        ahead = [*(nn.Conv2d(channels, channels, 1) for _ in scored), *(nn.Conv2d(n, channels, 1) for n in scored)]
        self.ahead = nn.ModuleList(ahead)

    def forward(
        self, x: Tensor, attention: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Clustered]]:
        """Return the next input, the tasks' features and scores (none of the last stack), and what was clustered."""
        maps: list[Tensor] = []
        clustered: list[Clustered] = []
        for branch in self.branches:
            found, regions = branch(x, attention)
            maps = [a + b for a, b in zip(maps, found, strict=True)] if maps else found
            clustered += [] if regions is None else [regions]
        features = [unit(y) for unit, y in zip(self.units, maps, strict=True)]
        scores = [score(y) for score, y in zip(self.scores, features, strict=False)]
        for layer, y in zip(self.ahead, features + scores, strict=False):
            x = x + layer(y)
        return x, features, scores, clustered


class HGOrientation(SegmentationNetwork):
    """Stacked hourglasses for roads and orientations; see `hg_orientation`."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_orientations: int,
        *,
        channels: int,
        stacks: int,
        branches: int,
        depth: int,
        clusterer: nn.Module | None,
        attention: str | None,
        plus: bool,
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.multiple = 1 if plus else 4  # what the heads grow back
        self.attention = attention
        self.attention_class = check_focus(attention, None, num_classes)
        classes = [num_classes, num_orientations]
        narrow = max(1, channels // 2)
        pool = nn.Identity() if plus else nn.MaxPool2d(2, ceil_mode=True)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, narrow, 7, 1 if plus else 2, 3),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            residual_unit(narrow, narrow),
            pool,
            residual_unit(narrow, narrow),
            residual_unit(narrow, channels),
        )
        self.stacks = nn.ModuleList(
            [_Stack(channels, depth, classes, [clusterer] * branches, last=i == stacks - 1) for i in range(stacks)]
        )
        self.heads = nn.ModuleList([_full_size_head(channels, number, grow=not plus) for number in classes])

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits of both tasks and, in training, those of the earlier stacks."""
        x = self.stem(x)
        logits: dict[str, Tensor] = {}
        found: list[Clustered] = []
        features: list[Tensor] = []
        steering = attention
        for i, stack in enumerate(self.stacks):
            x, features, scores, clustered = stack(x, steering)
            found += [c._replace(name=f"stack {i + 1}, branch {j + 1}") for j, c in enumerate(clustered)]
            if scores and attention is None:
                steering = focus(scores[0], self.attention, self.attention_class)
            if scores and self.training:
                suffix = "" if i == 0 else f"_{i + 1}"
                logits |= {f"aux{suffix}": scores[0], f"aux_orientation{suffix}": scores[1]}
        results = {task: head(y) for task, head, y in zip(TASKS, self.heads, features, strict=True)}
        return results | logits, found


def hg_orientation(
    num_classes: int = 2,
    *,
    hg: bool = True,
    plus: bool = False,
    attention: str | None = "object",
    num_orientations: int = 37,
    in_channels: int = 3,
    channels: int = 128,
    stacks: int = 2,
    branches: int = 2,
    depth: int = 3,
    clusterer: nn.Module | None = None,
) -> HGOrientation:
    """Make the stacked network that finds roads and, as a second task, where they lead; or its dense counterpart.

    HG-Orientation of HG-Conv (Sec. 5.3 and appendix A), after Batra et al., "Improved Road Connectivity by Joint
    Learning of Orientation and Segmentation", 2019: a stem, stacks of hourglasses with a shared encoder and a decoder
    for each task, whose features and scores go on to the next stack. Here each hourglass is several small branches side
    by side, summed; the deepest unit of the encoder and the first of each decoder run on the regions of one assignment,
    their output concatenated with the clustered map and put through a linear 1x1 convolution. The road score of a
    stack draws the centres of the next (active focus).

    Args:
        num_classes: Classes of roads, the last one to be attended to; 1 stands for a probability by a sigmoid.
        hg: False makes the dense network, in which nothing is steered.
        plus: The first convolution has stride 1 and there is no max-pooling; maps start at full size instead of a
            quarter.
        attention: ``"object"``, ``"uncertainty"`` or None, from the second stack on.
        num_orientations: Classes of orientation: 36 bins of 10 degrees and the background.
        in_channels: Channels of the images.
        channels: Channels of the hourglasses.
        stacks: Hourglasses after one another.
        branches: Hourglasses side by side.
        depth: How often an hourglass halves its map.
        clusterer: What clusters; each branch gets a copy. None: 16 pixels to a region, one iteration.

    Returns:
        The network. Called with images it returns what `SegmentationNetwork.forward` says: road logits as ``"out"``,
        and ``"orientation"``, both of the images' size; in training also ``"aux"`` and ``"aux_orientation"`` of the
        first stack, and of further ones except the last with their number (``"aux_2"``).

    Raises:
        ValueError: if an argument is not as said.

    Note:
        The paper draws this network in a figure only. Chosen here: two branches of equal form, one residual block to
        a unit where the original has three, and the place of the regions.

    Example:
        >>> import torch
        >>> net = hg_orientation(channels=8, depth=1, clusterer=SoftSLIC(4)).eval()
        >>> {name: tuple(y.shape[1:]) for name, y in net(torch.rand(1, 3, 40, 50)).items()}
        {'out': (2, 40, 50), 'orientation': (37, 40, 50)}
    """
    sizes = {"channels": channels, "stacks": stacks, "branches": branches, "depth": depth}
    for name, value in (sizes | {"num_orientations": num_orientations}).items():
        check_positive(name, value)
    if hg and clusterer is None:
        clusterer = SoftSLIC(16, iterations=1)
    return HGOrientation(
        in_channels,
        num_classes,
        num_orientations,
        channels=channels,
        stacks=stacks,
        branches=branches,
        depth=depth,
        clusterer=clusterer if hg else None,
        attention=attention if hg else None,
        plus=plus,
    )


def _fuse(channels: int) -> nn.Conv2d:
    return nn.Conv2d(2 * channels, channels, 1, bias=False)


def _full_size_head(channels: int, num_classes: int, *, grow: bool) -> nn.Sequential:
    """Return a head that doubles the size twice, or keeps it, with few channels on the large maps."""
    widths = [channels, max(1, channels // 2), max(1, channels // 4)]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        if grow:
            up = nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)
            layers += [up, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        else:
            layers += conv_norm_relu(before, after, 1)
    return nn.Sequential(*layers, *conv_norm_relu(widths[-1], widths[-1], 3), nn.Conv2d(widths[-1], num_classes, 1))
