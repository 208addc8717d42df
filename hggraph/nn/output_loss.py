"""The loss of a whole network: of each of its outputs, weighted and added up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hggraph.nn._target import check_number, match_size

__all__ = ["AUX_WEIGHT", "OutputLoss"]

AUX_WEIGHT = 0.4  # of PSPNet's code, and HG-Conv's, GALD's and HRNet-OCR's


class OutputLoss(nn.Module):
    """Compare the outputs of a network with their targets, weigh and add up.

    The outputs are named as the networks of `hggraph.models` name them. A name stands for a task: ``"out"`` and
    ``"orientation"`` for themselves; ``"aux"`` and ``"aux_2"``, auxiliary outputs, for the task ``"out"``, and
    ``"aux_orientation"`` for ``"orientation"``. Losses and targets are looked up by the output's name, then by the name
    without its number, then by the task, so that an auxiliary output has the loss and the target of its task unless it
    gets its own: ``{"out": OhemCrossEntropy(), "aux": CrossEntropy()}``.

    Args:
        losses: A module called as ``loss(logits, target)`` that returns a scalar, for the task ``"out"``; or modules
            by name.
        weights: Numbers >= 0 by name, with or without the output's number. None weighs auxiliary outputs with 0.4 and
            others with 1. An output of weight 0 is computed and reported, and teaches nothing.

    Raises:
        ValueError: if a weight is negative or no number, or there is no loss.

    Note:
        Logits smaller than their target are brought to its size (bilinear, corners on corners), in float32 under
        autocast too. Costs what the losses cost; nothing waits for the device.

    Example:
        >>> from hggraph.nn.losses import CrossEntropy
        >>> outputs = {"out": torch.rand(2, 5, 16, 16), "aux": torch.rand(2, 5, 4, 4)}
        >>> parts = OutputLoss(CrossEntropy())(outputs, torch.zeros(2, 16, 16, dtype=torch.long))
        >>> list(parts), bool(parts["loss"] == parts["out"] + 0.4 * parts["aux"])
        (['out', 'aux', 'loss'], True)
    """

    def __init__(self, losses: nn.Module | dict[str, nn.Module], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        if not losses and isinstance(losses, Mapping):
            raise ValueError("`losses` must hold at least one loss, got an empty dict.")
        self.losses = nn.ModuleDict(losses if isinstance(losses, Mapping) else {"out": losses})
        self.weights = weights
        if weights is not None:
            if not weights:
                raise ValueError("`weights` must name at least one output, got an empty dict.")
            self.weights = {name: check_number(f"weights[{name!r}]", value, 0) for name, value in weights.items()}

    def forward(self, outputs: Mapping[str, Any], target: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of each output and their weighted sum.

        Args:
            outputs: Logits ``(B, K, h, w)`` by name; entries that are no tensors, such as ``"regions"``, are passed
                over.
            target: Labels ``(B, H, W)`` of the task ``"out"``, or by name as the losses.

        Returns:
            The unweighted losses by the outputs' names, and under ``"loss"`` the weighted sum; scalars that are all
            attached to the graph.

        Raises:
            TypeError: as the losses do.
            ValueError: if an output has no loss, weight or target, if in training an output with a weight is missing,
                if a target is smaller than its logits, and as the losses do.
        """
        logits = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        if not logits or "loss" in logits:
            raise ValueError(f"`outputs` must hold logits, none of them named 'loss', got {list(outputs)}.")
        targets = target if isinstance(target, Mapping) else {"out": target}
        if self.training and self.weights is not None:
            self._check_complete(logits)
        parts: dict[str, Tensor] = {}
        total: list[Tensor] = []
        for name, value in logits.items():
            loss = self.losses[_find("loss", name, self.losses, task=True)]
            labels = targets[_find("target", name, targets, task=True)]
            if isinstance(labels, Tensor):
                value = match_size(name, value, labels)
            parts[name] = loss(value, labels)
            total.append(self._weight(name) * parts[name])
        parts["loss"] = torch.stack(total).sum()
        return parts

    def extra_repr(self) -> str:
        """Return the weights."""
        return f"weights={self.weights}"

    def _weight(self, name: str) -> float:
        if self.weights is None:
            return 1.0 if _task(name) == _unnumbered(name) else AUX_WEIGHT
        return self.weights[_find("weight", name, self.weights, task=False)]

    def _check_complete(self, logits: Mapping[str, Tensor]) -> None:
        assert self.weights is not None
        missing = [name for name in self.weights if name not in logits and name not in map(_unnumbered, logits)]
        if missing:
            raise ValueError(
                f"The network returned {', '.join(map(repr, logits))} and not {', '.join(map(repr, missing))}, which "
                f"has a weight. Leave it out of `weights`, make the network with it, or, of a network in eval mode, "
                f"call `.eval()` on this loss too."
            )


def _find(what: str, name: str, found: Any, *, task: bool) -> str:
    """Return the key under which an output's loss, target or weight stands."""
    keys = [name, _unnumbered(name), *([_task(name)] if task else [])]
    for key in keys:
        if key in found:
            return key
    wanted = " or ".join(map(repr, dict.fromkeys(keys)))
    todo = "Give it one, 0 to leave it out." if what == "weight" else "Give it one."
    raise ValueError(f"The network's output {name!r} has no {what}: expected {wanted}, got {list(found)}. {todo}")


def _unnumbered(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _task(name: str) -> str:
    """Return what an output is trained for: the rest of its name after ``"aux"``, or ``"out"``."""
    match = re.fullmatch(r"aux(?:_(.+))?", _unnumbered(name))
    return (match[1] or "out") if match else _unnumbered(name)
