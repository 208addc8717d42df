"""A photo becomes a graph of regions, and graph networks run on it.

    python examples/02_photo_to_graph.py [--out DIR] [--regions N]

Takes a photo that comes with scikit-learn and makes the regions its nodes. Edges say which regions touch and in
which direction. HGConv uses a matrix for each direction; PyG's GCNConv runs on the same graph without directions.
"""

import argparse
import importlib.util
from pathlib import Path

from hggraph import HGConv, SoftSLIC, Stencil, region_graph
from hggraph.data import sample_photo
from hggraph.viz import region_figure, save_figure

# isort: split
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

NAMES = {
    (-1, 0): "above",
    (1, 0): "below",
    (0, -1): "to the left",
    (0, 1): "to the right",
    (-1, -1): "above, left",
    (-1, 1): "above, right",
    (1, -1): "below, left",
    (1, 1): "below, right",
}


def print_neighbors(graph: Data, region: int, stencil: Stencil, count: int = 5) -> None:
    """Print the regions to which a region is connected most strongly, and where they lie."""
    y, x = graph.pos[region].tolist()
    colour = ", ".join(f"{value:.2f}" for value in graph.x[region].tolist())
    print(f"\nThe largest region is {region}, around ({y:.0f}, {x:.0f}), of colour ({colour}).")
    print("Its strongest neighbours:")
    source, target = graph.edge_index
    edges = ((target == region) & (source != region)).nonzero().flatten()
    edges = edges[graph.edge_weight[edges].argsort(descending=True)][:count]
    for edge in edges.tolist():
        direction = NAMES[stencil.offsets[int(graph.edge_type[edge])]]
        y, x = graph.pos[source[edge]].tolist()
        print(
            f"  region {int(source[edge]):3}, {direction:12}  strength {graph.edge_weight[edge]:6.1f}"
            f"  around ({y:.0f}, {x:.0f})"
        )


def main(out: str | Path = "demo", regions: int = 300) -> Data:
    """Make the graph, print what it is, run two layers on it, draw it, and return it."""
    torch.manual_seed(0)
    photo = sample_photo()  # (3, H, W), in [0, 1]
    clusterer = SoftSLIC(num_regions=regions, feature_scale="photo").eval()
    with torch.no_grad():
        assignment = clusterer(photo[None])
        graph = region_graph(photo[None], assignment)[0]

    print(f"Photo: {photo.shape[2]} x {photo.shape[1]} = {photo[0].numel():,} pixels")
    print(f"Graph: {graph}")
    print(f"  x            mean colour of each of {graph.num_nodes} regions")
    print("  pos, area    mean (y, x) in pixels, and size in pixels")
    print(f"  edge_index   {graph.num_edges:,} edges, from source j to target i")
    print("  edge_type    direction in which j lies, seen from i")
    print("  edge_weight  how strongly they touch; a region's edge to itself has 1")
    print("  edge_attr    displacement in [0, 1], for SplineConv and GMMConv")
    print_neighbors(graph, int(graph.area.argmax()), Stencil.square(3))

    convolution = HGConv(3, 16)
    y = convolution(graph.x, graph.edge_index, graph.edge_type, graph.edge_weight)
    print(f"\n{convolution}\n  {tuple(graph.x.shape)} -> {tuple(y.shape)}")
    kipf_welling = GCNConv(3, 16)
    y = kipf_welling(graph.x, graph.edge_index, graph.edge_weight)
    print(f"{kipf_welling}, from PyTorch Geometric\n  {tuple(graph.x.shape)} -> {tuple(y.shape)}")

    if importlib.util.find_spec("matplotlib") is None:
        print('\nNo figure: matplotlib is not installed (pip install "hggraph[viz]").')
        return graph
    path = Path(out) / "photo_to_graph.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(region_figure(photo, clusterer, assignment=assignment), path)
    print(f"\nFigure: {path}")
    return graph


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="demo", help="folder for the figure")
    parser.add_argument("--regions", type=int, default=300, help="nodes of the graph")
    arguments = parser.parse_args()
    main(arguments.out, arguments.regions)
