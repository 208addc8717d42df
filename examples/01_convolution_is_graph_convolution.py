"""A convolution is a sum of graph convolutions, one for each tap of its kernel (HG-Conv, Eq. 1 = Eq. 2).

    python examples/01_convolution_is_graph_convolution.py

Pixels become nodes. An edge runs to pixel i from the pixel that tap k of the kernel reads there, and its type is k.
On that graph HGConv, with the convolution's own weights, has to give the convolution's result.
"""

from hggraph import HGConv, Stencil, grid_graph

# isort: split
import torch
from torch import Tensor, nn

# (kernel size, dilation, stride, groups)
CASES_2D = [
    (1, 1, 1, 1),
    (2, 1, 1, 1),
    (3, 1, 1, 1),
    (3, 1, 2, 1),
    (3, 2, 1, 4),
    (5, 3, 1, 1),
    (5, 1, 2, 4),
    (7, 1, 1, 1),
    (7, 2, 2, 1),
]
CASES_3D = [(3, 1, 1, 1), (3, 2, 1, 4), (3, 1, 2, 1)]


def to_nodes(x: Tensor) -> Tensor:
    """Return images (B, C, H, W) or videos (B, C, T, H, W) as rows (B * pixels, C), image by image."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1)


def error(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> tuple[float, float]:
    """Return the largest difference between convolution and graph convolution, and between their gradients."""
    layer = HGConv.from_conv(conv)
    size = tuple(x.shape[2:])
    graph = grid_graph(size, layer.stencil, stride=conv.stride, batch_size=len(x))

    pixels = x.clone().requires_grad_()
    # padded on both sides, an even kernel gives one row and column more than there are pixels
    inside = [slice(0, -(-n // step)) for n, step in zip(size, conv.stride, strict=True)]
    by_convolution = to_nodes(conv(pixels)[..., *inside])
    nodes = to_nodes(x).requires_grad_()
    by_graph = layer(nodes, graph.edge_index, graph.edge_type, num_targets=graph.num_targets)

    upstream = torch.randn_like(by_graph)
    by_convolution.backward(upstream)
    by_graph.backward(upstream)
    gradients = [
        (to_nodes(pixels.grad), nodes.grad),
        (conv.weight.grad.flatten(2).permute(2, 1, 0), layer.weight.grad),
        (conv.bias.grad, layer.bias.grad),
    ]
    return (
        (by_convolution - by_graph).abs().max().item(),
        max((a - b).abs().max().item() for a, b in gradients),
    )


def main() -> float:
    """Print the differences and return the largest."""
    torch.manual_seed(0)
    stencil = Stencil.square(3)
    graph = grid_graph((12, 13), stencil)
    print("A stencil is a list of displacements (dy, dx), in the order of a kernel's taps:")
    print(f"  {stencil} = {stencil.offsets}")
    print("The pixel graph of a 12 x 13 image has an edge for each displacement inside the image:")
    print(f"  {graph.num_nodes} nodes, {graph.num_edges} edges of {len(stencil)} types\n")
    print("Conv2d or Conv3d against HGConv with the same weights, in float64:\n")
    print("layer   kernel  dilation  stride  groups  largest difference  in gradients")
    largest = 0.0
    for ndim, layer, cases in [(2, nn.Conv2d, CASES_2D), (3, nn.Conv3d, CASES_3D)]:
        size = (12, 13) if ndim == 2 else (5, 6, 7)
        for kernel, dilation, stride, groups in cases:
            conv = layer(
                8,
                16,
                kernel,
                stride=stride,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                groups=groups,
                dtype=torch.float64,
            )
            out, gradient = error(conv, torch.randn(2, 8, *size, dtype=torch.float64))
            largest = max(largest, out, gradient)
            print(f"Conv{ndim}d  {kernel:6}  {dilation:8}  {stride:6}  {groups:6}  {out:18.1e}  {gradient:12.1e}")
    print(f"\nLargest difference: {largest:.1e}. A convolution is a graph convolution.")
    return largest


if __name__ == "__main__":
    main()
