"""PyConvInception: size and operations near the published ones, its blocks literally, training, compiling."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hggraph.models import fold_batch_norm, pyconv_inception
from hggraph.models.pyconv_inception import ScaledBottleneck
from hggraph.nn import PyConv2d


@pytest.fixture(scope="module")
def on_meta():
    with torch.device("meta"):
        return pyconv_inception().eval()


def test_size_and_operations_are_near_the_published_ones(on_meta):
    """43.48 M and 11.92 G (supplement, Table 5)."""
    parameters = sum(p.numel() for p in on_meta.parameters()) / 1e6
    assert f"{parameters:.2f}" == "43.54" and abs(parameters / 43.48 - 1) < 0.002
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(torch.empty(1, 3, 299, 299, device="meta"))
    operations = counter.get_total_flops() / 2e9
    assert f"{operations:.2f}" == "11.84" and abs(operations / 11.92 - 1) < 0.01


def test_all_inception_blocks_are_replaced(on_meta):
    assert [len(stage) for stage in (on_meta.repeat, on_meta.repeat_1, on_meta.repeat_2)] == [10, 20, 10]
    levels = [len(stage[0].conv2.pyramid) for stage in (on_meta.repeat, on_meta.repeat_1, on_meta.repeat_2)]
    assert levels == [4, 3, 2] and isinstance(on_meta.block8, nn.Identity)
    assert sum(isinstance(part, PyConv2d) for part in on_meta.modules()) == 40
    assert not any(type(part).__name__.startswith("Block") for part in on_meta.modules())


def test_a_block_is_its_input_and_a_scaled_branch():
    pyramid = {"kernel_sizes": (3, 5), "groups": (1, 2)}
    block = ScaledBottleneck(8, 4, pyramid, scale=0.2).double().eval()
    for norm in (block.bn1, block.bn2, block.bn3):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)

    def normed(y, norm):
        return y * norm.weight[:, None, None] / (1 + norm.eps) ** 0.5 + norm.bias[:, None, None]

    with torch.no_grad():
        y = normed(F.conv2d(x, block.conv1.weight), block.bn1).relu()
        low, high = block.conv2.levels
        y = torch.cat([F.conv2d(y, low.weight, padding=1), F.conv2d(y, high.weight, padding=2, groups=2)], 1)
        y = F.conv2d(normed(y, block.bn2).relu(), block.conv3.weight)
        torch.testing.assert_close(block(x), (x + 0.2 * normed(y, block.bn3)).relu(), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_trains_compiles_exports_and_folds():
    net = pyconv_inception(2)
    x, target = torch.randn(4, 3, 96, 96), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(p.grad is not None for p in net.parameters())
    net.eval()
    with torch.no_grad():
        want = net(x)
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), want, rtol=1e-3, atol=1e-4)
        program = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(program(x), want, rtol=1e-3, atol=1e-4)
        fold_batch_norm(net.repeat_1)
        torch.testing.assert_close(net(x), want, rtol=1e-3, atol=1e-4)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`num_classes` must be a whole number >= 1, got 0"):
        pyconv_inception(0)
    with pytest.raises(ValueError, match="`in_channels` must be a whole number >= 1"):
        pyconv_inception(10, in_channels=0)
