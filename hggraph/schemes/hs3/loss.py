"""The loss of hierarchical supervision: each tap on its own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hggraph.nn import CrossEntropy, OutputLoss
from hggraph.nn.output_loss import AUX_WEIGHT
from hggraph.schemes.hs3.grouping import Grouping, merge_labels, read_groupings
from hggraph.schemes.hs3.region_tap import RegionLogits, region_loss

__all__ = ["HS3Loss"]


class HS3Loss(OutputLoss):
    r"""The loss of a network and its taps (HS3 Eq. 1).

    .. math::
        L = L_{final}^S + \sum_i \gamma_i L_i^{S_i}

    Tap i is compared with labels in which the classes are merged as its grouping :math:`S_i` says; a tap on regions
    with the majority of each region's pixels, weighted by purity. Everything else is as in `OutputLoss`.

    Args:
        losses: As `OutputLoss` takes them, for the network's own outputs.
        groupings: Groups of classes by the names of the taps, ``{"tap_2": [[0, 3], [1], [2]]}``, or the path of a file
            that `write_groupings` wrote or somebody by hand. A tap that is not named has all classes: deep supervision.
        tap_loss: Called as ``loss(logits, labels)`` for taps on pixels; `CrossEntropy` when None.
        weights: As `OutputLoss` takes them, the :math:`\gamma_i` by the taps' names among them. None: 0.4 for taps and
            auxiliary outputs.
        ignore_index: The label that does not count.

    Raises:
        ValueError: as `Grouping`, `read_groupings` and `OutputLoss`; in a call, if a tap has not as many classes as its
            grouping.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import torch
        >>> outputs = {"out": torch.rand(2, 4, 8, 8), "tap_2": torch.rand(2, 3, 8, 8)}
        >>> loss = HS3Loss(CrossEntropy(), {"tap_2": [[0, 3], [1], [2]]})
        >>> parts = loss(outputs, torch.zeros(2, 8, 8, dtype=torch.long))
        >>> list(parts), bool(parts["loss"] == parts["out"] + 0.4 * parts["tap_2"])
        (['out', 'tap_2', 'loss'], True)
    """

    def __init__(
        self,
        losses: nn.Module | dict[str, nn.Module],
        groupings: dict[str, list[list[int]]] | str | None = None,
        tap_loss: nn.Module | None = None,
        weights: dict[str, float] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(losses, weights)
        if isinstance(groupings, str):
            self.groupings = read_groupings(groupings)
        else:
            self.groupings = {name: Grouping(groups) for name, groups in (groupings or {}).items()}
        for name, grouping in self.groupings.items():  # tables move with the module, and stay out of checkpoints
            self.register_buffer(f"table_of_{name}", grouping.table, persistent=False)
        self.losses["tap"] = CrossEntropy(ignore_index) if tap_loss is None else tap_loss
        self.ignore_index = ignore_index

    def forward(self, outputs: Mapping[str, Any], target: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of each output and tap, and their weighted sum under ``"loss"``; see `OutputLoss`."""
        targets = dict(target) if isinstance(target, Mapping) else {"out": target}
        taps = [name for name in outputs if name.startswith("tap_")]
        strange = [name for name in self.groupings if name not in taps and self.training]
        if strange:
            raise ValueError(f"`groupings` must name taps of the network, {taps}, got {strange}.")
        for name in taps:
            targets[name] = self._merged(name, outputs[name], targets["out"])
        parts = super().forward(outputs, targets)
        for name in taps:
            if isinstance(outputs[name], RegionLogits):
                parts[name] = region_loss(outputs[name], targets[name], ignore_index=self.ignore_index)
                parts["loss"] = parts["loss"] + self._weight(name) * parts[name]
        parts["loss"] = parts.pop("loss")  # the last one
        return parts

    def _merged(self, name: str, found: Tensor | RegionLogits, target: Tensor) -> Tensor:
        """Return the labels that a tap is compared with."""
        grouping = self.groupings.get(name)
        if grouping is None:
            return target
        logits = found.logits if isinstance(found, RegionLogits) else found
        if logits.shape[1] != len(grouping):
            raise ValueError(
                f"The tap {name!r} has {logits.shape[1]} classes and its grouping {len(grouping)}; make the network "
                f"with as many: tap_classes={{{name.removeprefix('tap_')!r}: {len(grouping)}}}."
            )
        return merge_labels(target, self.get_buffer(f"table_of_{name}"), self.ignore_index)

    def _weight(self, name: str) -> float:
        if name.startswith("tap_") and (self.weights is None or name not in self.weights):
            return AUX_WEIGHT
        return super()._weight(name)
