"""Trained networks with all that is needed to use them, from model folders alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hggraph._check import check_positive
from hggraph.cluster import SoftSLIC
from hggraph.data.class_transforms import ClassEvalTransform
from hggraph.data.palettes import Color
from hggraph.data.transforms import EvalTransform
from hggraph.models.pretrained import from_pretrained, pretrained_config

__all__ = ["Preprocessing", "Trained", "for_inference", "load_clusterer", "load_trained"]

Preprocessing = EvalTransform | ClassEvalTransform
_TRANSFORMS: dict[str, type[Any]] = {"EvalTransform": EvalTransform, "ClassEvalTransform": ClassEvalTransform}


class Trained(NamedTuple):
    """A network in eval mode, and how it is used.

    Args:
        net: As it was trained, on the CPU.
        task: ``"segmentation"``, ``"classification"``, ``"detection"`` or ``"regions"``.
        classes: Their names; empty if unknown.
        palette: Red, green and blue of each class; empty if unknown.
        preprocessing: What its images went through in evaluation; None if the folder does not say.
    """

    net: nn.Module
    task: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    preprocessing: Preprocessing | None


def load_trained(path_or_hub_id: str | Path, *, revision: str | None = None, trust: bool = False) -> Trained:
    """Load a model folder: of a run of ``hggraph fit``, published, or on the hub.

    Args:
        path_or_hub_id: See `from_pretrained`.
        revision: See `from_pretrained`.
        trust: See `from_pretrained`.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `from_pretrained`.
    """
    config = pretrained_config(path_or_hub_id, revision=revision)
    preprocessing = _preprocessing(config)
    return Trained(
        from_pretrained(path_or_hub_id, revision=revision, trust=trust),
        config["task"],
        tuple(config["classes"] or ()),
        tuple(_color(color) for color in config["palette"] or ()),
        preprocessing,
    )


def for_inference(net: nn.Module) -> nn.Module:
    """Return a copy in the form in which prediction is fastest: the same function up to rounding.

    Batch normalisations become part of the convolutions before them, what else a network can compose is composed, and
    convolutions' weights lie channels last. The published times are of this form.

    Example:
        >>> from hggraph.models import hg_resnet
        >>> net = hg_resnet(18, hg_stages=()).eval()
        >>> any(isinstance(part, nn.BatchNorm2d) for part in for_inference(net).modules())
        False
    """
    # a network that does not say how it folds may normalise before a convolution
    fold: Any = getattr(net, "fold", None)
    folded: nn.Module = copy.deepcopy(net).eval() if fold is None else fold()
    return folded.requires_grad_(False).to(memory_format=torch.channels_last)


def load_clusterer(run: str | Path, *, num_regions: int | None = None, downsample: float | None = None) -> SoftSLIC:
    """Load the clusterer that a run of `hggraph.engine.RegionTask` has trained, with its best weights.

    It is taken wherever a clusterer is: by `region_graph`, `ToRegionGraph`, ``hggraph graph --clusterer RUN``, and in
    recipes as ``class_path: hggraph.inference.load_clusterer``, ``init_args: {run: RUN}``.

    Args:
        run: Folder that ``hggraph fit`` wrote to, or a published one.
        num_regions: Regions per image; as in training when neither this nor `downsample` is given.
        downsample: Pixels per region instead.

    Returns:
        The clusterer in eval mode on the CPU.

    Raises:
        FileNotFoundError, ValueError: as `from_pretrained`; also if what was trained is no `SoftSLIC`, or both numbers
            are given.
    """
    if num_regions is not None and downsample is not None:
        raise ValueError(f"Give `num_regions` or `downsample`, not both, got {num_regions} and {downsample}.")
    found = from_pretrained(run)
    if not isinstance(found, SoftSLIC):
        raise ValueError(
            f"{run} holds no clusterer but a {type(found).__name__}; train one with "
            f"`hggraph fit --config recipes/bsds500_regions.yaml`."
        )
    if num_regions is not None:
        check_positive("num_regions", num_regions)
        found.num_regions = num_regions
    elif downsample is not None:
        if not downsample >= 1:
            raise ValueError(f"`downsample` must be at least 1 pixel per region, got {downsample}.")
        found.num_regions, found.downsample = None, downsample
    return found


def _preprocessing(config: dict[str, Any]) -> Preprocessing | None:
    """Return the transform that a checked configuration describes."""
    if config["preprocessing"] is None:
        return None
    ((name, options),) = ((key, one) for key, one in config["preprocessing"].items() if key in _TRANSFORMS)
    try:
        made: Preprocessing = _TRANSFORMS[name](**options, mean=config["mean"], std=config["std"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"config.json describes no preprocessing: {error}") from error
    return made


def _color(values: Sequence[int]) -> Color:
    red, green, blue = values
    return red, green, blue
