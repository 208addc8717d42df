"""Local attention is message passing too: one layer on a map, on the graph of its pixels and on a graph of regions.

    python examples/05_local_attention.py [--size N] [--channels C]

Compares the layer on a map with the same layer on `grid_graph`, and with attention to all pixels of which all but the
neighbours are masked; says what unfolding would take; then runs the layer on the regions of a photo, where each
direction in which regions touch has a logit of its own.
"""

import argparse
import time

from hggraph import SoftSLIC, Stencil, grid_graph, region_graph
from hggraph.data import sample_photo
from hggraph.nn import LocalAttention

# isort: split
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor


def on_grid(layer: LocalAttention, x: Tensor) -> Tensor:
    """Return the layer on the graph of a map's pixels, (B, C, H, W) as on the map."""
    batch, _, *size = x.shape
    graph = grid_graph(tuple(size), layer.stencil, batch_size=batch)
    nodes = layer(x.movedim(1, -1).flatten(0, 2), graph.edge_index, graph.edge_type)
    return nodes.view(batch, *size, -1).movedim(-1, 1)


def masked(layer: LocalAttention, x: Tensor) -> Tensor:
    """Return attention to all pixels, without those that are no neighbours: O(P^2), as a check."""
    height, width = x.shape[2:]
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    apart = (place[None] - place[:, None]).flatten(0, 1)  # source minus target
    offsets = torch.tensor(layer.stencil.offsets)
    near = (apart[:, None] == offsets).all(2).any(1).view(height * width, -1)
    rows = x.flatten(2).mT[:, None]
    q, k, v = (part(rows) for part in (layer.query, layer.key, layer.value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=near)[:, 0].mT.unflatten(2, (height, width))


def main(size: int = 24, channels: int = 64) -> float:
    """Compare, show what unfolding takes, attend on regions; return the largest difference."""
    torch.manual_seed(0)
    stencil = Stencil.square(5, dilation=3)  # GALD's local distribution
    layer = LocalAttention(channels, channels, stencil, border="mask").double()
    x = torch.randn(2, channels, size, size, dtype=torch.float64)
    table = Table("local attention", "seconds", "largest difference", title=f"{stencil}, {size} x {size} pixels")
    with torch.no_grad():
        expected = layer(x)
        worst = 0.0
        for name, run in (("on the map", layer.forward), ("on the graph of its pixels", lambda x: on_grid(layer, x)),
                          ("on all pixels, masked", lambda x: masked(layer, x))):  # fmt: skip
            start = time.perf_counter()
            difference = (run(x) - expected).abs().max().item()
            table.add_row(name, f"{time.perf_counter() - start:.3f}", f"{difference:.1e}")
            worst = max(worst, difference)
    Console().print(table)
    taken = 2 * len(stencil) * x.numel() * 4 / 2**20
    print(f"Unfolded keys and values would be {taken:.0f} MiB of float32; here none are made.\n")

    photo = sample_photo()[None]
    graph = region_graph(photo, clusterer=SoftSLIC(num_regions=300, feature_scale="photo").eval())
    attention = LocalAttention(3, 16, heads=4, direction_bias=True)  # a logit for each of nine directions and head
    out = attention(graph.x, graph.edge_index, graph.edge_type, graph.edge_weight)
    out.square().mean().backward()
    print(f"A photo of {graph.num_nodes} regions and {graph.num_edges} edges: {graph.x.shape} to {out.shape},")
    print("with a gradient for the logit of every direction:", bool(attention.direction_bias.grad.all()))
    return worst


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=24, help="pixels along each side of the map, at least 13")
    parser.add_argument("--channels", type=int, default=64)
    arguments = parser.parse_args()
    main(arguments.size, arguments.channels)
