"""The forms that a segmentation network takes: single images, folded, compiled, exported."""

import torch
from torch import Tensor

from tests.models.norms import randomise_norms


def single_and_folded(net, x: Tensor) -> dict[str, Tensor]:
    """Return the logits of a batch, of its images one by one and of the folded network, in float64."""
    net, x = randomise_norms(net).double().eval(), x.double()
    with torch.no_grad():
        singles = torch.cat([net(image[None])["out"] for image in x])
        return {"batch": net(x)["out"], "singles": singles, "folded": net.fold()(x)["out"]}


def compiled_and_exported(net, x: Tensor) -> dict[str, Tensor]:
    """Return the logits of a network, of its one compiled graph and of the exported program, in float64."""
    net, x = net.double().eval(), x.double()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        program = torch.export.export(net, (x,)).module()
        return {"eager": net(x)["out"], "compiled": compiled(x)["out"], "exported": program(x)["out"]}
