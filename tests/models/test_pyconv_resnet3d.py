"""PyConvResNet3D and its baseline: published counts, sizes of maps, training, compiling."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hggraph.models import fold_batch_norm, pyconv_resnet3d
from hggraph.nn import PyConv3d


def on_meta(**options):
    with torch.device("meta"):
        return pyconv_resnet3d(50, **options)


@pytest.mark.parametrize(("pyramids", "parameters", "published"), [(False, "47.00", 93.26), (True, "45.37", 91.81)])
def test_published_counts(pyramids, parameters, published):
    """Supplement, Table 2: parameters (44.91 M there with pyramids, which its shapes do not give), and operations."""
    net = on_meta(pyramids=pyramids).eval()
    assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f}" == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, 3, 16, 224, 224, device="meta"))
    assert 0.98 * published <= counter.get_total_flops() / 2e9 <= published


@pytest.mark.parametrize("pyramids", [False, True])
def test_sizes_of_the_table(pyramids):
    net, sizes = on_meta(pyramids=pyramids).eval(), []
    x = net.stem(torch.empty(1, 3, 16, 224, 224, device="meta"))
    assert tuple(x.shape[2:]) == ((16, 112, 112) if pyramids else (16, 56, 56))
    for stage in net.stages:
        x = stage(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(256, 16, 56, 56), (512, 16, 28, 28), (1024, 8, 14, 14), (2048, 4, 7, 7)]


def test_pyramids_of_the_table():
    stages = on_meta().stages
    assert all(isinstance(block.conv2, PyConv3d) for stage in stages for block in stage)
    first, second = stages[0][1].conv2, stages[1][1].conv2
    assert [level.kernel_size for level in first.pyramid] == [(3, 3, 3), (3, 5, 5), (5, 7, 7), (7, 9, 9)]
    assert [(level.groups, level.out_channels) for level in second.pyramid] == [(1, 32), (4, 32), (8, 64)]


def test_trains_a_step():
    net = pyconv_resnet3d(50, 2)
    F.cross_entropy(net(torch.randn(2, 3, 2, 16, 16)), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("pyramids", [False, True])
def test_trains_folds_compiles_and_exports(pyramids):
    net = pyconv_resnet3d(50, 2, pyramids=pyramids, zero_init=True, dropout=0)
    x, target = torch.randn(2, 3, 4, 24, 24), torch.tensor([0, 1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    net.eval()
    with torch.no_grad():
        want = net(x)
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), want, rtol=1e-3, atol=1e-4)
        program = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(program(x), want, rtol=1e-3, atol=1e-4)
        fold_batch_norm(net)
        assert not any(isinstance(part, nn.BatchNorm3d) for part in net.modules())
        torch.testing.assert_close(net(x), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18}, r"`depth` must be one of \(50, 101, 152\), got 18"),
        ({"num_classes": 0}, "`num_classes` must be a whole number >= 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        pyconv_resnet3d(**arguments)


def test_wrong_clips():
    net = on_meta().eval()
    with pytest.raises(ValueError, match=r"`x` must have shape \(B, 3, T, H, W\), got \(1, 3, 32, 32\)"):
        net(torch.rand(1, 3, 32, 32))
