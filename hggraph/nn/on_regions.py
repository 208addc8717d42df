"""Strides become levels of regions, in any network that is made of modules."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hggraph.cluster import Cells, SoftSLIC
from hggraph.graph import Assignment
from hggraph.nn._strided import BLUR, Mean, Strided, Unstrided
from hggraph.nn._strides import Call, find_calls
from hggraph.nn.region_conv import RegionConv2d
from hggraph.nn.region_level import RegionLevel

__all__ = ["RegionLevels", "on_regions"]

_STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


class RegionLevels(nn.ModuleList):
    """The levels of a network on regions, from fine to coarse, and what they need in a forward pass.

    Attributes:
        attention: Where regions should crowd in passes from now on, ``(B, H, W)`` in [0, 1] of any size, or None.
        given: An `Assignment` of the map of the first level, to take instead of clustering, or None.
    """

    def __init__(self, levels: Sequence[RegionLevel]) -> None:
        super().__init__(levels)
        self.attention: Tensor | None = None
        self.given: Assignment | None = None
        self.before = False  # the first level is pooled before the network, not by a layer of it
        self._base: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: nothing of a pass."""
        return self.__dict__ | {"attention": None, "given": None, "_base": None}

    def forward(self, x: Any) -> Any:
        """Return `x`: a ``Sequential`` whose child this is calls all of its children."""
        return x

    def begin(self) -> None:
        """Forget the regions of the last pass."""
        self._base = None
        level: Any
        for level in self:
            level.leave()

    def start(self, x: Tensor) -> Tensor:
        """Return what the network takes of a map: the nodes, if the first level stands before it."""
        if not self.before:
            return x
        self.enter(0, x)
        level: Any = self[0]
        nodes: Tensor = level.pool(x)
        return nodes

    @property
    def base(self) -> Tensor:
        """The map that the first level was made of in the last pass."""
        if self._base is None:
            raise RuntimeError("No map has reached the first level of regions yet.")
        return self._base

    def enter(self, number: int, x: Tensor) -> None:
        """Make the regions of a level of the map, or of the nodes, that reach it."""
        level: Any = self[number]
        if number == 0:
            self._base = x
        finer: Any = self[number - 1] if number else None
        seen = x if level.nested or not number else self.base
        # regions of regions crowd where those of the first level do
        attention = self.attention if not number or not level.nested else None
        if attention is not None:
            attention = F.interpolate(attention[:, None], tuple(seen.shape[2:]), mode="area")[:, 0]
        level.enter(seen, attention, self.given if number == 0 else None, finer)

    def to_map(self, z: Tensor, number: int = -1) -> Tensor:
        """Bring the nodes of a level back to the map of the first."""
        level: Any = self[number]
        return level.to_map(z)

    def restore(self, value: Any, number: int) -> Any:
        """Bring a tensor of nodes back; what has another size is no map of nodes, and stays."""
        level: Any = self[number]
        if not isinstance(value, Tensor) or value.dim() != 4 or tuple(value.shape[2:]) != level.shape:
            return value
        return self.to_map(value, number)


class _Pass:
    """What happens around a forward pass of a whole network, and where a level begins."""

    def __init__(self, levels: RegionLevels, number: int = 0, leaves: Sequence[int | None] = ()) -> None:
        self.levels, self.number, self.leaves = levels, number, tuple(leaves)

    def begin(self, module: nn.Module, args: Any) -> None:
        """Forget the last pass."""
        self.levels.begin()

    def enter(self, module: nn.Module, args: Any) -> None:
        """Make a level's regions."""
        self.levels.enter(self.number, args[0])

    def end(self, module: nn.Module, args: Any, out: Any) -> Any:
        """Bring outputs that are nodes back to the map of the first level."""
        leaves, spec = pytree.tree_flatten(out)
        if len(leaves) != len(self.leaves):
            raise RuntimeError(f"The network returned {len(leaves)} tensors, and {len(self.leaves)} when converted.")
        found = [
            leaf if level is None else self.levels.restore(leaf, level)
            for leaf, level in zip(leaves, self.leaves, strict=True)
        ]
        return pytree.tree_unflatten(found, spec)


def on_regions(
    network: nn.Module,
    clusterer: nn.Module | Sequence[nn.Module] | None = None,
    *,
    from_stride: int = 1,
    pooling: str = "mean",
    directions: str = "birth",
    back: str = "soft",
    nested: bool = True,
    steps: bool = True,
    before: bool = False,
    noise_cancel: bool = True,
    max_direction: bool = True,
    restore: bool = True,
) -> RegionLevels:
    """Make every stride of a network beyond `from_stride` a level of regions, in place.

    A layer with a stride computes at every pixel (or node) of the finer level, and the result is pooled by the regions
    of the level; nodes go on as a map, so that all that acts on each of them, and convolutions over regions born on a
    grid, stay the layers that they are. Other directions make convolutions `RegionConv2d`. Parameters and their names
    stay. What runs is found by running the network once on zeros.

    Args:
        network: Changed in place, with hooks on its modules.
        clusterer: One for all levels, each of which gets a copy (of `Cells` with the level's stride as its side), or
            one for each. None: ``SoftSLIC(4)``; for one level alone ``SoftSLIC()``.
        from_stride: Strides up to it stay.
        pooling: See `RegionLevel`, as for those that follow.
        directions: How edges are typed.
        back: The way back.
        nested: Regions of regions.
        steps: False: one level, in one jump; layers with a stride after the first have none.
        before: One level before the network, whose strides have no meaning then; the network takes its nodes.
        noise_cancel: For ``"borders"``.
        max_direction: For ``"borders"``.
        restore: Bring the network's outputs back to the map of the first level; False: they are nodes, for
            `RegionLevels.to_map`, when all that can be done on them is done.

    Returns:
        The levels. They are no child of the network yet.

    Raises:
        ValueError: if there are no such strides, or the network cannot be converted; the text says why.
    """
    if clusterer is None:
        clusterer = SoftSLIC(4) if steps and not before else SoftSLIC()
    side = 24 * from_stride if from_stride >= 8 else 96
    calls, outputs = find_calls(network, side)
    groups = _groups(calls, 1 if before else from_stride, needed=not before)
    clusterers = _copies(clusterer, [(1, 1)] if before else groups if steps else groups[:1], nested)
    options: Any = {"pooling": pooling, "directions": directions, "back": back}
    options |= {"noise_cancel": noise_cancel, "max_direction": max_direction}
    levels = RegionLevels([RegionLevel(one, nested=nested or not i, **options) for i, one in enumerate(clusterers)])
    level_of = {after: min(number, len(levels) - 1) for number, (_, after) in enumerate(groups)}
    if before:
        levels.before = True
        level_of = {call.before: 0 for call in calls if call.before is not None}
    _put_means(calls, levels, level_of)
    if directions != "birth":
        calls = _put_convolutions(network, calls, levels, level_of)
    for number, strides in enumerate(groups):
        keep = Strided if number < len(levels) and not before else Unstrided
        if keep is Strided:
            _entry(calls, strides).register_forward_pre_hook(_Pass(levels, number).enter)
        for layer in _layers(calls, strides):
            strided = keep(layer, levels[min(number, len(levels) - 1)])  # type: ignore[arg-type]
            layer.register_forward_pre_hook(strided.before)
            layer.register_forward_hook(strided.after)
    if not before:
        network.register_forward_pre_hook(_Pass(levels).begin, prepend=True)
    if restore:
        network.register_forward_hook(_Pass(levels, leaves=[level_of.get(stride or 0) for stride in outputs]).end)
    if not before:
        _try(network, levels, side, groups)
    return levels


def _is_leaf(module: nn.Module) -> bool:
    return isinstance(module, _STRIDED) or type(module).__name__ in BLUR or not any(True for _ in module.children())


def _groups(calls: list[Call], from_stride: int, needed: bool = True) -> list[tuple[int, int]]:
    """Return the strides before and after each level."""
    found = sorted({(c.before, c.after) for c in calls if _strides(c, from_stride)})  # type: ignore[type-var]
    if not found and needed:
        strides = sorted({c.after for c in calls if c.after is not None})
        raise ValueError(
            f"The network has no stride beyond `from_stride` = {from_stride}; its maps have strides {strides}."
        )
    for (_, after), (before, _) in itertools.pairwise(found):
        if before != after:
            raise ValueError(f"Strides must follow one another, got layers from stride to stride {found}.")
    for call in calls:
        if call.before and call.after and call.before > from_stride and call.after < call.before:
            raise ValueError(
                f"{call.name} ({type(call.module).__name__}) brings a map of stride {call.before} to {call.after}: the "
                f"network upsamples inside, and its nodes have no way back there. Convert the part before."
            )
    return found  # type: ignore[return-value]


def _strides(call: Call, from_stride: int) -> bool:
    """Say whether a call is that of a single layer with a stride beyond."""
    if call.before is None or call.after is None or call.before < from_stride or call.after <= call.before:
        return False
    if not _is_leaf(call.module):
        return False
    if isinstance(call.module, _STRIDED) or type(call.module).__name__ in BLUR:
        return True
    raise ValueError(f"{call.name} strides by {type(call.module).__name__}, which has no form on regions.")


def _layers(calls: list[Call], strides: tuple[int, int]) -> list[nn.Module]:
    found = [call for call in calls if (call.before, call.after) == strides and _is_leaf(call.module)]
    return list(dict.fromkeys(call.module for call in found))


def _entry(calls: list[Call], strides: tuple[int, int]) -> nn.Module:
    """Return the largest module that holds all layers of a level and no other stride, or the layer called first."""
    layers = set(_layers(calls, strides))
    for call in calls:  # the outer before the inner
        if (call.before, call.after) == strides and layers <= set(call.module.modules()):
            return call.module
    return next(call.module for call in calls if call.module in layers)


def _copies(clusterer: nn.Module | Sequence[nn.Module], groups: list[tuple[int, int]], nested: bool) -> list[nn.Module]:
    """Return a clusterer for each level."""
    if not isinstance(clusterer, nn.Module):
        given = list(clusterer) if isinstance(clusterer, Sequence) else [clusterer]
        if not all(isinstance(one, nn.Module) for one in given):
            raise TypeError(f"`clusterer` must be a module or a sequence of modules, got {clusterer!r}.")
        if len(given) != len(groups):
            raise ValueError(f"`clusterer` must be one, or {len(groups)} for strides {groups}, got {len(given)}.")
        return given
    out = []
    for start, after in groups:
        one: Any = copy.deepcopy(clusterer)
        if isinstance(one, Cells):
            one = Cells(after // start if nested else after // groups[0][0])
        elif getattr(one, "num_regions", None) is None and not nested and hasattr(one, "downsample"):
            one.downsample = one.downsample * (start // groups[0][0]) ** 2
        out.append(one)
    return out


def _put_means(calls: list[Call], levels: RegionLevels, level_of: dict[int, int]) -> None:
    """Make global means of nodes means by area."""
    parents: list[Call] = []
    for call in calls:
        while parents and not call.name.startswith(f"{parents[-1].name}."):
            parents.pop()
        holder = next((parent for parent in reversed(parents) if parent.before in level_of), None)
        number = level_of.get((call.before if holder is None else holder.before) or 0, 0)
        level: Any = levels[number]
        leaf = not any(True for _ in call.module.children())
        if leaf and call.before in level_of and call.after is None and "AvgPool" in type(call.module).__name__:
            if level.pooling == "mean":
                call.module.register_forward_hook(Mean(level).replace)
        elif leaf and call.single and level.pooling == "mean" and _is_mean(calls, holder, call):
            assert holder is not None
            mean = Mean(level)
            holder.module.register_forward_pre_hook(mean.hold)
            call.module.register_forward_pre_hook(mean.put)
        parents.append(call)


def _is_mean(calls: list[Call], holder: Call | None, call: Call) -> bool:
    """Say whether a layer is the first that `holder` calls, and gets one value of each channel of what `holder` got."""
    if holder is None or holder.channels != call.channels:
        return False
    return next(one for one in calls if one.name.startswith(f"{holder.name}.")).module is call.module


def _put_convolutions(
    network: nn.Module, calls: list[Call], levels: RegionLevels, level_of: dict[int, int]
) -> list[Call]:
    """Make convolutions over nodes those of typed edges; return the calls with these modules."""
    made: dict[nn.Module, nn.Module] = {}
    for call in calls:
        conv = call.module
        if call.before not in level_of or not isinstance(conv, nn.Conv2d) or conv.kernel_size == (1, 1):
            continue
        level: Any = levels[level_of[call.before]]
        try:
            made[conv] = RegionConv2d.of(conv, level)
        except ValueError as error:
            raise ValueError(f"{call.name}: {error}") from error
        parent = network.get_submodule(call.name.rpartition(".")[0])
        setattr(parent, call.name.rpartition(".")[2], made[conv])
    return [call._replace(module=made.get(call.module, call.module)) for call in calls]


def _try(network: nn.Module, levels: RegionLevels, side: int, groups: list[tuple[int, int]]) -> None:
    """Run the converted network once, with regular cells, so that what cannot run is refused now."""
    kept = [level.clusterer for level in levels]  # type: ignore[union-attr]
    for level, (before, after) in zip(levels, groups, strict=False):
        level.clusterer = Cells(after // (before if level.nested else groups[0][0]))  # type: ignore[union-attr]
    try:
        find_calls(network, side)
    except ValueError as error:
        raise ValueError(f"The network cannot be converted, on regions it fails. {error}") from error
    finally:
        levels.begin()
        for level, clusterer in zip(levels, kept, strict=True):
            level.clusterer = clusterer
