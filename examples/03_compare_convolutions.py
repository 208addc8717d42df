"""Six convolutions on region graphs of handwritten digits: the HG-Conv paper's Table 3 in small.

    python examples/03_compare_convolutions.py [--epochs N] [--seeds N]

Scikit-learn's 1,797 digits become graphs of 20 regions, once. A node knows its brightness and its area but not where
it is: shape is in the edges alone. The same network of two layers is trained with each convolution in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from hggraph import HGConv, SoftSLIC, region_graph
from hggraph.nn import GMMConv, SplineConv

# isort: split
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import DynamicEdgeConv, EdgeConv, GCNConv, RGCNConv
from torch_geometric.typing import WITH_KNN

REGIONS, WIDTH, NEIGHBORS = 20, 32, 8
TRAINING = 1297  # of 1,797; the others test


class TorchDynamicEdgeConv(nn.Module):
    """PyG's DynamicEdgeConv with nearest neighbours found by PyTorch, in graphs of equal size."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.conv = EdgeConv(mlp, aggr="max")

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        graphs = x.detach().unflatten(0, (-1, REGIONS))
        near = torch.cdist(graphs, graphs).topk(NEIGHBORS, largest=False).indices
        first = torch.arange(len(near), device=x.device)[:, None, None] * REGIONS
        target = torch.arange(len(x), device=x.device).repeat_interleave(NEIGHBORS)
        return self.conv(x, torch.stack([(near + first).flatten(), target]))


def dynamic_edge_conv(inputs: int, outputs: int) -> nn.Module:
    mlp = nn.Sequential(nn.Linear(2 * inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
    return DynamicEdgeConv(mlp, NEIGHBORS) if WITH_KNN else TorchDynamicEdgeConv(mlp)


# label: (makes a layer, what the layer is given besides the nodes); defaults wherever there are
CONVOLUTIONS: dict[str, tuple[Callable[[int, int], nn.Module], tuple[str, ...]]] = {
    "HGConv": (HGConv, ("edge_index", "edge_type", "edge_weight")),
    "SplineConv (hggraph)": (lambda i, o: SplineConv(i, o, 2, 3), ("edge_index", "edge_attr")),
    "GMMConv (hggraph)": (lambda i, o: GMMConv(i, o, 2, 9), ("edge_index", "edge_attr")),
    f"DynamicEdgeConv ({'PyG' if WITH_KNN else 'torch kNN'})": (dynamic_edge_conv, ("batch",)),
    "GCNConv (PyG)": (GCNConv, ("edge_index", "edge_weight")),
    "RGCNConv (PyG)": (lambda i, o: RGCNConv(i, o, 9), ("edge_index", "edge_type")),
}


class Network(nn.Module):
    """Two convolutions, the mean and the largest of all nodes, a linear classifier."""

    def __init__(self, convolution: str) -> None:
        super().__init__()
        make, self.given = CONVOLUTIONS[convolution]
        self.convs = nn.ModuleList([make(2, WIDTH), make(WIDTH, WIDTH)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH)])
        self.head = nn.Linear(2 * WIDTH, 10)

    def forward(self, graph: Data) -> Tensor:
        x = graph.x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x, *(graph[name] for name in self.given))))
        x = x.unflatten(0, (-1, REGIONS))
        return self.head(torch.cat([x.mean(1), x.amax(1)], 1))


def digits() -> tuple[list[Data], list[Data]]:
    """Return the region graphs of the digits, in a fixed split for training and testing."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    images = F.interpolate(images, scale_factor=4, mode="bilinear")  # so that borders have a direction
    # the default crowds centres on the strokes' edges; on an image this small, even is better
    clusterer = SoftSLIC(num_regions=REGIONS, sampling="random", feature_scale="photo").eval()
    with torch.no_grad():
        graphs = region_graph(images, clusterer=clusterer).to_data_list()
    for graph, label in zip(graphs, labels.tolist(), strict=True):
        graph.x = torch.stack([graph.x[:, 0], graph.area * REGIONS / images[0].numel()], 1)
        graph.y = label
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(0)).tolist()
    return [graphs[i] for i in order[:TRAINING]], [graphs[i] for i in order[TRAINING:]]


def train(network: Network, batches: list[Batch], epochs: int) -> list[float]:
    """Train a network and return the seconds that each epoch took."""
    optimizer = torch.optim.Adam(network.parameters())
    schedule = OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs * len(batches))
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        for i in torch.randperm(len(batches)).tolist():
            optimizer.zero_grad()
            F.cross_entropy(network(batches[i]), batches[i].y).backward()
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def main(epochs: int = 8, seeds: int = 3, convolutions: list[str] | None = None) -> Table:
    """Train and test every convolution (or those named), print the table and return it."""
    training, testing = digits()
    print(f"{len(training):,} graphs to train on, {len(testing)} to test, {REGIONS} nodes each")
    table = Table("convolution", title=f"{epochs} epochs, {seeds} seeds")
    for column in ["accuracy", "parameters", "s per epoch"]:
        table.add_column(column, justify="right", no_wrap=True)
    test_batch = Batch.from_data_list(testing)
    for name in convolutions or CONVOLUTIONS:
        accuracy, seconds = [], []
        for seed in range(seeds):
            torch.manual_seed(seed)
            batches = list(DataLoader(training, batch_size=64, shuffle=True))
            network = Network(name)
            seconds += train(network, batches, epochs)
            with torch.no_grad():
                right = network.eval()(test_batch).argmax(1) == test_batch.y
            accuracy.append(100 * right.double().mean().item())
        spread = f" ± {statistics.stdev(accuracy):.1f}" if seeds > 1 else ""
        mean = f"{statistics.mean(accuracy):.1f}{spread} %"
        parameters = sum(parameter.numel() for parameter in network.parameters())
        table.add_row(name, mean, f"{parameters:,}", f"{statistics.median(seconds):.2f}")
        print(f"  {name}: {mean}", flush=True)
    Console().print(table)
    print("Accuracy: mean and standard deviation over seeds. GCNConv is told no directions,")
    print("DynamicEdgeConv no edges: it connects the nodes whose features are most alike.")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    main(**vars(parser.parse_args()))
