"""Names of weights: of other programs' files, and of timm's networks of features alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import Tensor

__all__ = ["feature_sources", "to_timm"]

# The parts of a block, in timm's names: (with an expansion, without one). None: such a block has no such part.
_Parts = dict[str, tuple[str | None, str | None]]

_TORCHVISION = {"features.0.0": "conv_stem", "features.0.1": "bn1", "classifier.1": "classifier"}
_TORCHVISION_PARTS: _Parts = {
    "conv.0.0": ("conv_pw", "conv_dw"),
    "conv.0.1": ("bn1", "bn1"),
    "conv.1.0": ("conv_dw", None),
    "conv.1.1": ("bn2", None),
    "conv.1": (None, "conv_pw"),
    "conv.2": ("conv_pwl", "bn2"),
    "conv.3": ("bn3", None),
}
_LUKEMELAS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LUKEMELAS_PARTS: _Parts = {
    "_expand_conv": ("conv_pw", None),
    "_bn0": ("bn1", None),
    "_depthwise_conv": ("conv_dw", "conv_dw"),
    "_bn1": ("bn2", "bn1"),
    "_project_conv": ("conv_pwl", "conv_pw"),
    "_bn2": ("bn3", "bn2"),
}


def to_timm(state: dict[str, Tensor], wanted_keys: Collection[str]) -> dict[str, Tensor]:
    """Give the tensors of another program's file timm's names.

    Known are torchvision's MobileNetV2 and the EfficientNet-Lite of lukemelas' EfficientNet-PyTorch; torchvision's
    ResNets have timm's names. Both programs number blocks through, timm numbers stages and blocks in each, so
    the n-th block of the file is the n-th of the network; what is too many keeps its name.

    Args:
        state: Tensors by name.
        wanted_keys: The names of timm's whole network; they say where its blocks are.

    Returns:
        The same tensors by timm's names, or `state` itself if its layout is none of these or the network is none
        of inverted residuals.

    Example:
        >>> import timm, torchvision
        >>> wanted = timm.create_model("mobilenetv2_100").state_dict()
        >>> to_timm(torchvision.models.mobilenet_v2().state_dict(), wanted).keys() == wanted.keys()
        True
    """
    if "conv_stem.weight" not in wanted_keys:
        return state
    if {"features.0.0.weight", "features.1.conv.0.0.weight"} <= state.keys():
        blocks = _blocks(wanted_keys)
        last = f"features.{len(blocks) + 1}"
        rules = _TORCHVISION | {f"{last}.0": "conv_head", f"{last}.1": "bn2"}
        rules |= _block_rules("features.{}", 1, _TORCHVISION_PARTS, blocks)
    elif {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} <= state.keys():
        rules = _LUKEMELAS | _block_rules("_blocks.{}", 0, _LUKEMELAS_PARTS, _blocks(wanted_keys))
    else:
        return state
    return {_renamed(key, rules): value for key, value in state.items()}


def feature_sources(feature_keys: Collection[str], full_keys: Collection[str]) -> dict[str, str | None]:
    """Say which parameter of a whole network each one of timm's network of features is.

    timm keeps the names (ResNet, EfficientNet, HRNet), joins the first two parts where it flattens a sequence
    (``stages.0.blocks`` is ``stages_0.blocks``), or puts the whole network under a name of its own.

    Args:
        feature_keys: The names of ``timm.create_model(name, features_only=True)``.
        full_keys: Those of ``timm.create_model(name)``.

    Returns:
        For each name of the features its name in the whole network; None if there is none, or more than one.

    Example:
        >>> feature_sources(["stem.weight", "stages_0.weight"], ["stem.weight", "stages.0.weight", "head.weight"])
        {'stem.weight': 'stem.weight', 'stages_0.weight': 'stages.0.weight'}
    """
    ways: list[Callable[[str], str]] = [
        lambda key: key,
        lambda key: key.replace(".", "_", 1),
        lambda key: f"model.{key}",
        lambda key: f"body.{key}",
        lambda key: f"graph_module.{key}",
    ]
    found: dict[str, set[str]] = {key: set() for key in feature_keys}
    for key in full_keys:
        for way in ways:
            if way(key) in found:
                found[way(key)].add(key)
    return {key: next(iter(names)) if len(names) == 1 else None for key, names in found.items()}


def _blocks(wanted_keys: Collection[str]) -> list[tuple[str, bool]]:
    """Blocks of timm in their order: the name, and whether it has an expansion."""
    found = {match for key in wanted_keys if (match := re.match(r"blocks\.(\d+)\.(\d+)\.", key))}
    places = sorted({(int(match[1]), int(match[2])) for match in found})
    names = [f"blocks.{stage}.{block}" for stage, block in places]
    return [(name, f"{name}.conv_pwl.weight" in wanted_keys) for name in names]


def _block_rules(name: str, first: int, parts: _Parts, blocks: list[tuple[str, bool]]) -> dict[str, str]:
    rules = {}
    for number, (block, expands) in enumerate(blocks, first):
        for part, (with_expansion, without) in parts.items():
            to = with_expansion if expands else without
            if to is not None:
                rules[f"{name.format(number)}.{part}"] = f"{block}.{to}"
    return rules


def _renamed(key: str, rules: dict[str, str]) -> str:
    """The module by its rule, the parameter as it is."""
    module, _, parameter = key.rpartition(".")
    return f"{rules[module]}.{parameter}" if module in rules else key
