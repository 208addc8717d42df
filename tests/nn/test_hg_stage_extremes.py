"""HGStage compiled, in training, with candidates, with emptied regions, and in odd layouts."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hggraph import HGStage, SoftSLIC, Stencil
from hggraph.nn import HGBasicBlock, HGBottleneck


def stage(fuse=True, **options):
    blocks = [HGBottleneck(6, 2), HGBasicBlock(8, 8)]
    fuse = nn.Conv2d(14, 7, 1) if fuse else None
    return HGStage(blocks, SoftSLIC(**{"num_regions": 5, "iterations": 2, **options}), fuse=fuse)


def test_compiles_before_it_ever_ran():
    """In one graph, eval mode's fixed noise included; parameters get the eager gradients."""
    layer = stage(sampling="importance").eval()
    x = torch.randn(2, 6, 8, 9, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    leaves = [x, *layer.parameters()]
    cotangent = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, cotangent)
    expected = layer(x)
    assert_close(out, expected)
    assert_close(grads, torch.autograd.grad(expected, leaves, cotangent), rtol=1e-4, atol=1e-5)


def test_compiles_in_training_with_a_given_assignment():
    """Batch statistics and running means move as in eager mode; the assignment is an input."""
    layer = stage().train()
    other = copy.deepcopy(layer)
    x = torch.randn(2, 6, 8, 9, requires_grad=True)
    assignment = layer.cluster(x.detach())

    def run(x, weight):
        given = copy.copy(assignment)
        given.weight = weight
        return other(x, assignment=given)

    out = torch.compile(run, fullgraph=True, backend="aot_eager")(x, assignment.weight)
    assert_close(out, layer(x, assignment=assignment))
    assert_close(dict(other.named_buffers()), dict(layer.named_buffers()))


@pytest.mark.parametrize(("sampling", "repeats"), [("grid", True), ("topk_random", False)])
def test_compiled_training_draws_new_centres_if_sampling_is_random(sampling, repeats):
    layer = HGStage([HGBasicBlock(6, 7)], SoftSLIC(num_regions=5, iterations=1, sampling=sampling)).train()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 6, 12, 12)
    first, second = compiled(x), compiled(x)
    assert torch.isfinite(first).all() and torch.equal(first, second) is repeats


@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_is_near_float32(candidates, dtype):
    """Clustering is in float32 either way, so the regions are the same."""
    layer = stage(candidates=candidates).eval()
    x = torch.randn(2, 6, 10, 11)
    expected = layer(x)
    with torch.autocast("cpu", dtype):
        out = layer(x)
    # some ten products, each rounded to the half's digits, of numbers about as large as the largest
    bound = 16 * torch.finfo(dtype).eps * expected.detach().abs().max().item()
    assert_close(out.float(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("candidates", [None, 2])
def test_emptied_region_passes_finite_numbers(candidates, monkeypatch):
    """The region between two plateaus keeps its centre, and its neighbours never hear of it."""
    seeds = torch.tensor([[0, 4, 8]])
    monkeypatch.setattr("hggraph.cluster.clusterer.sample_with_noise", lambda *_: seeds)
    layer = HGStage(
        [HGBasicBlock(1, 1)],
        SoftSLIC(num_regions=3, iterations=1, feature_scale="none", candidates=candidates),
    ).eval()
    x = torch.tensor([0.0] * 5 + [100.0] * 4).view(1, 1, 1, 9).requires_grad_()
    out = layer(x)
    (grad,) = torch.autograd.grad(out, x, torch.randn_like(out))
    assert torch.isfinite(out).all() and torch.isfinite(grad).all()
    assert out[..., :5].unique().numel() == out[..., 5:].unique().numel() == 1


def surrounded(x):
    buffer = torch.full([size + 2 for size in x.shape], float("nan"), dtype=x.dtype)
    buffer[1:-1, 1:-1, 1:-1, 1:-1] = x
    return buffer[1:-1, 1:-1, 1:-1, 1:-1]


@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize(
    "layout",
    [
        surrounded,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.mT.contiguous().mT,
        lambda x: x.flip(3).contiguous().flip(3),
    ],
    ids=["surrounded", "channels_last", "transposed", "flipped"],
)
def test_layouts(candidates, layout):
    layer = stage(candidates=candidates).double().eval()
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    expected = layer(x)
    out = layer(layout(x).requires_grad_())
    assert_close(out, expected, rtol=0, atol=1e-10)
    out.sum().backward()  # a gradient with strides of 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_one_assignment_for_two_stages():
    """A decoder reuses its encoder's regions: another map of the same size, the same S."""
    encoder, decoder = stage().eval(), stage(fuse=False).eval()
    x, y = torch.randn(2, 6, 9, 8), torch.randn(2, 6, 9, 8, requires_grad=True)
    assignment = encoder.cluster(x)
    out = decoder(y, assignment=assignment)
    z = assignment.pool(y)
    for block in decoder.blocks:
        z = block(z, assignment.adjacency())
    assert_close(out, assignment.unpool(z))
    with pytest.raises(ValueError, match="`x` must have 2 images of 9 x 8 pixels"):
        decoder(y[:, :, :8], assignment=assignment)


def test_another_stencil():
    """Blocks and adjacency must be over the same directions, and an error says so."""
    five, clusterer = Stencil.square(5), SoftSLIC(num_regions=4)
    layer = HGStage([HGBasicBlock(6, 6, five)], clusterer, stencil=five)
    assert layer(torch.randn(1, 6, 8, 8)).shape == (1, 6, 8, 8)
    layer = HGStage([HGBasicBlock(6, 6, five)], clusterer)
    with pytest.raises(ValueError, match=r"`adjacency` must be over Stencil\(5x5, dilation=1\)"):
        layer(torch.randn(1, 6, 8, 8))


def test_fuse_must_fit():
    layer = stage()
    layer.fuse = nn.Conv2d(13, 7, 1)
    for candidates in (None, 3):
        layer.clusterer.candidates = candidates
        with pytest.raises(ValueError, match=r"`weight` must have shape \(O, 14\), got"):
            layer(torch.randn(1, 6, 8, 8))


def test_gradient_reaches_the_input_through_the_regions():
    """Detached clustering changes the gradient: S, pooled and in the adjacency, carries some."""
    layer = stage().double().eval()
    x = torch.randn(1, 6, 6, 7, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(1, 7, 6, 7, dtype=torch.float64)
    (through,) = torch.autograd.grad(layer(x), x, cotangent)
    layer.clusterer.detach = True
    (around,) = torch.autograd.grad(layer(x), x, cotangent)
    assert not torch.allclose(through, around)
    layer.clusterer.detach = False
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)
