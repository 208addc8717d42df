"""Batch normalisations that do something, for networks that were never trained."""

from torch import nn


def randomise_norms(net: nn.Module) -> nn.Module:
    """Draw statistics, scales and shifts of all normalisations, on pixels and on regions; return the network."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (part.running_mean, part.running_var, part.weight, part.bias):
                nn.init.uniform_(value, 0.5, 1.5)
            nn.init.normal_(part.running_mean, 0, 0.1)
    return net
