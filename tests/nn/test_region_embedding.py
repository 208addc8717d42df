"""The region embedding: its layers, what its channels are, and what it may depend on."""

import pytest
import torch
import torch.nn.functional as F

from hggraph.nn import RegionEmbedding


def test_parameters_are_those_of_the_paper():
    """5-64-64, 64-64-64-64 at two more scales with batch normalisation, 5 + 3 * 64 to 15 with a bias."""
    convolutions = 9 * (5 * 64 + 5 * 64 * 64) + 6 * 2 * 64
    assert sum(p.numel() for p in RegionEmbedding().parameters()) == convolutions + 9 * (5 + 192) * 15 + 15


@pytest.mark.parametrize("position", [True, False])
@pytest.mark.parametrize("size", [(9, 12), (1, 1), (1, 7), (32, 33)])
def test_is_the_network_written_out(size, position):
    net = RegionEmbedding(channels=6, out_channels=4, position=position).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    points = torch.randn(2, 5, *size, dtype=torch.float64)
    layers = [block for scale in net.scales for block in scale]

    def block(x, number):
        conv, norm = layers[number][0], layers[number][1]
        x = F.conv2d(x, conv.weight, padding=1)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return ((x - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp(min=0)

    seen = points if position else points[:, :3]
    first = block(block(seen, 0), 1)
    second = block(block(F.max_pool2d(first, 3, 2, 1), 2), 3)
    third = block(block(F.max_pool2d(second, 3, 2, 1), 4), 5)
    large = [F.interpolate(x, size, mode="bilinear") for x in (second, third)]
    learned = F.conv2d(torch.cat([seen, first, *large], 1), net.mix.weight, net.mix.bias, padding=1).clamp(min=0)
    out = net(points)
    assert out.shape == (2, net.out_channels, *size)
    torch.testing.assert_close(out, torch.cat([learned, points], 1), rtol=1e-10, atol=1e-10)


def test_begins_with_the_photo_alone():
    points = torch.randn(1, 5, 20, 20) * 10
    learned = RegionEmbedding()(points)[:, :15]
    assert learned.abs().max() < 1 and learned.any()  # not dead either


def test_hidden_positions_change_nothing():
    """Without positions the learned channels are the same wherever the photo begins and however many regions."""
    net = RegionEmbedding(channels=8, position=False).eval()
    points = torch.randn(1, 5, 12, 12)
    moved = points.clone()
    moved[:, 3:] = moved[:, 3:] * 3 + 7
    assert torch.equal(net(points)[:, :15], net(moved)[:, :15])
    assert not torch.equal(net(points)[:, 18:], net(moved)[:, 18:])
    seeing = RegionEmbedding(channels=8).eval()
    assert not torch.equal(seeing(points)[:, :15], seeing(moved)[:, :15])


def test_gradients_reach_every_parameter():
    net = RegionEmbedding(channels=4)
    net(torch.randn(2, 5, 16, 16))[:, :15].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_empty_batch():
    assert RegionEmbedding(channels=4).eval()(torch.rand(0, 5, 8, 8)).shape == (0, 20, 8, 8)


def test_wrong_input():
    with pytest.raises(ValueError, match="5 channels"):
        RegionEmbedding()(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="at least one channel"):
        RegionEmbedding()(torch.rand(1, 5, 0, 8))
    for options in ({"in_channels": 2}, {"out_channels": 0}, {"channels": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            RegionEmbedding(**options)
