"""Probabilities equal literal computations: whole, in windows, at several scales, mirrored, in batches."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hggraph.data import load_graph, save_graph
from hggraph.inference.predictor import Predictor, to_labels
from hggraph.models import hg_resnet


def convolutions(reach, channels=3, classes=4):
    """Return a network of convolutions whose pixels see `reach` pixels far."""
    layers = []
    for i in range(reach):
        layers += [nn.Conv2d(channels if i == 0 else 6, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(6 if reach else channels, classes, 1)).requires_grad_(False)


def literal(net, x):
    return net(x).softmax(1)


class Attended(nn.Module):
    """Logits that depend on attention."""

    def forward(self, x, attention=None):
        assert attention is None or (attention.min() >= 0 and attention.max() <= 1)
        focus = x.new_zeros(len(x), *x.shape[2:]) if attention is None else attention
        return {"out": torch.cat([x, 3 * focus[:, None]], 1)}


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (16, 16), (17, 40), (33, 31), (50, 15)])
@pytest.mark.parametrize(("window", "reach"), [(16, 2), ((7, 30), 2), (4, 0), ((1, 3), 0)])
def test_tiled_equals_whole_when_the_overlap_covers_the_receptive_field(size, window, reach):
    """With the receptive field, 2 r + 1, as overlap and r as margin; with none for a network that sees one pixel."""
    net, x = convolutions(reach), torch.randn(2, 3, *size)
    overlap = 2 * reach + 1 if reach else 0
    found = Predictor(net, window=window, overlap=overlap, margin=reach, batch_size=8)(x)
    torch.testing.assert_close(found, literal(net, x), rtol=0, atol=1e-6)


def test_default_margin_hides_a_quarter_of_the_overlap():
    net, x = convolutions(3), torch.randn(1, 3, 50, 70)
    expected = literal(net, x)
    found = Predictor(net, window=24, overlap=12)(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    # with less, or without a margin, the windows' zero padding shows
    for options in ({"overlap": 8}, {"overlap": 12, "margin": 0}, {"overlap": 0}):
        assert (Predictor(net, window=24, **options)(x) - expected).abs().max() > 1e-4


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(3, 20), st.floats(0, 0.8), st.integers(1, 7))
def test_probabilities_sum_to_one(height, width, window, overlap, batch_size):
    x = torch.randn(2, 3, height, width)
    found = Predictor(convolutions(1), window=window, overlap=overlap, batch_size=batch_size)(x)
    assert found.shape == (2, 4, height, width) and found.dtype == torch.float32
    assert (found >= 0).all() and (found <= 1).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2, height, width), rtol=0, atol=2e-6)


def test_certain_predictions_stay_probabilities():
    """Sums of rounded weights exceed 1 somewhere; probabilities do not."""
    certain = torch.full((1, 2, 61, 67), 100.0)
    certain[:, 1] = 0
    found = Predictor(nn.Identity(), window=17, overlap=9)(certain)
    assert found.max() == 1 and found[:, 0].min() > 1 - 1e-6


@pytest.mark.parametrize("window", [None, 20, 64])
def test_batch_equals_single_images(window):
    net, x = convolutions(2), torch.randn(5, 3, 27, 31)
    single = torch.cat([Predictor(net, window=window)(image[None]) for image in x])
    for batch_size in (1, 2, 5, 16):
        found = Predictor(net, window=window, batch_size=batch_size)(x)
        torch.testing.assert_close(found, single, rtol=0, atol=1e-6)
    poisoned = x.clone()
    poisoned[3] = float("nan")
    found = Predictor(net, window=window, batch_size=2)(poisoned)
    keep = [0, 1, 2, 4]
    torch.testing.assert_close(found[keep], single[keep], rtol=0, atol=1e-6)


def test_batch_size_bounds_what_the_network_sees():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape))
            return x

    x = torch.randn(3, 2, 10, 20)
    Predictor(Spy(), batch_size=2)(x)
    assert seen == [(2, 2, 10, 20), (1, 2, 10, 20)]
    seen.clear()
    Predictor(Spy(), window=(16, 8), overlap=2, batch_size=4)(x)
    assert seen == [(4, 2, 10, 8), (4, 2, 10, 8), (1, 2, 10, 8)]
    seen.clear()
    Predictor(Spy(), window=(16, 8), overlap=2, batch_size=4).whole(x)
    assert seen == [(3, 2, 10, 20)]


def test_flip_equals_the_literal_mean():
    net, x = convolutions(2), torch.randn(2, 3, 21, 34)
    expected = (literal(net, x) + literal(net, x.flip(3)).flip(3)) / 2
    torch.testing.assert_close(Predictor(net, flip=True)(x), expected, rtol=0, atol=1e-6)
    found = Predictor(net, flip=True, window=16, overlap=8)(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (expected - literal(net, x)).abs().max() > 1e-3


def test_scales_equal_the_literal_mean():
    net, x = convolutions(2), torch.randn(2, 3, 21, 35)
    expected = 0
    for size in [(10, 18), (21, 35), (37, 61)]:  # 10.5 and 17.5 are rounded to even
        there = literal(net, F.interpolate(x, size, mode="bilinear", align_corners=False))
        expected = expected + F.interpolate(there, (21, 35), mode="bilinear", align_corners=False) / 3
    scales = (0.5, 1.0, 1.75)
    torch.testing.assert_close(Predictor(net, scales=scales)(x), expected, rtol=0, atol=1e-6)
    # windows keep their size at each scale
    found = Predictor(net, scales=scales, window=18, overlap=10, margin=2)(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_one_pixel_at_every_scale():
    net, x = convolutions(1), torch.randn(1, 3, 1, 1)
    found = Predictor(net, scales=(0.1, 1, 2), flip=True, window=8)(x)
    assert found.shape == (1, 4, 1, 1) and found.isfinite().all()


def test_one_class_is_a_sigmoid():
    net, x = convolutions(1, classes=1), torch.randn(2, 3, 9, 12)
    for window in (None, 6):
        found = Predictor(net, window=window, overlap=4)(x)
        assert found.shape == (2, 1, 9, 12)
        torch.testing.assert_close(found, net(x).sigmoid(), rtol=0, atol=1e-6)
    assert to_labels(torch.tensor([0.49, 0.5, 0.51]).view(1, 1, 1, 3)).tolist() == [[[0, 1, 1]]]
    assert to_labels(torch.tensor([[0.4, 0.4, 0.2]]).view(1, 3, 1, 1)).tolist() == [[[0]]]


def test_attention_goes_with_its_pixels():
    x, attention = torch.randn(3, 2, 20, 26), torch.rand(3, 20, 26)
    net = Attended()
    expected = net(x, attention)["out"].softmax(1)
    for options in ({}, {"flip": True}, {"window": 9, "batch_size": 4}, {"window": (8, 30), "flip": True}):
        torch.testing.assert_close(Predictor(net, **options)(x, attention), expected, rtol=0, atol=1e-6)
    small = F.interpolate(x, (10, 13), mode="bilinear"), F.interpolate(attention[:, None], (10, 13), mode="bilinear")
    there = net(small[0], small[1][:, 0])["out"].softmax(1)
    found = Predictor(net, scales=(0.5,), batch_size=2)(x, attention)
    torch.testing.assert_close(found, F.interpolate(there, (20, 26), mode="bilinear"), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="attention"):
        Predictor(net)(x, attention[:, :5])


def test_modes_are_restored():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    net[1].eval()  # frozen statistics
    before = net[1].running_mean.clone()
    x = torch.randn(1, 3, 8, 8)
    predict = Predictor(net)
    assert torch.equal(predict(x), predict(x))  # no dropout
    assert (net.training, net[0].training, net[1].training, net[2].training) == (True, True, False, True)
    assert torch.equal(net[1].running_mean, before)

    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        Predictor(broken)(x)
    assert broken.training
    assert not predict(x).requires_grad and torch.is_grad_enabled()


def test_precisions():
    net, x = convolutions(2), torch.randn(1, 3, 12, 14)
    expected = literal(net, x)
    seen = []
    net[0].register_forward_hook(lambda module, args, out: seen.append((args[0].dtype, out.dtype)))
    low = Predictor(net, dtype=torch.bfloat16)(x)
    assert low.dtype == torch.float32 and seen[-1] == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(low, expected, rtol=0, atol=0.02)
    assert not torch.equal(low, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Predictor(net)(x), low)
        assert torch.equal(Predictor(net, dtype=torch.float32)(x), Predictor(net, dtype=torch.float32)(x))
        assert seen[-1] == (torch.float32, torch.float32)
    # without autocast images take the network's own type
    double = Predictor(convolutions(2).double(), window=8)(x)
    assert double.dtype == torch.float32
    halves = Predictor(net, batch_size=2)(x.bfloat16())
    torch.testing.assert_close(halves, literal(net, x.bfloat16().float()), rtol=0, atol=1e-6)


def test_layouts():
    net, x = convolutions(2), torch.randn(2, 3, 18, 22)
    expected = Predictor(net, window=10)(x)
    views = [x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)]
    for view in views:
        torch.testing.assert_close(Predictor(net, window=10)(view), expected, rtol=0, atol=1e-6)
    kept = x.clone()
    Predictor(net, window=10, scales=(0.5, 1), flip=True)(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"window": 0}, "`window` must be a whole number >= 1, got 0"),
        ({"window": (8, 0)}, "`window` must be"),
        ({"window": (8, 8, 8)}, r"`window` must be a side in pixels or \(height, width\)"),
        ({"window": 8, "overlap": 8}, "`overlap` must be"),
        ({"window": (16, 8), "overlap": 8}, "`overlap` must be"),
        ({"window": 8, "overlap": 4, "margin": 3}, "`margin` must be"),
        ({"scales": ()}, "`scales` must be positive numbers, at least one"),
        ({"scales": (1, 0)}, "`scales` must be"),
        ({"scales": (float("nan"),)}, "`scales` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"dtype": torch.int8}, "`dtype` must be"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        Predictor(nn.Identity(), **options)


def test_bad_images():
    predict = Predictor(convolutions(1))
    with pytest.raises(TypeError, match=r"`images` must be floating point, got torch.uint8"):
        predict(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"`images` must have shape \(B, C, H, W\)"):
        predict(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="at least one image"):
        predict(torch.zeros(0, 3, 4, 4))
    with pytest.raises(ValueError, match="at least one channel and one pixel"):
        predict(torch.zeros(1, 3, 0, 4))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.AvgPool2d(2), r"logits must have the images' size, here \(1, K, 8, 8\), got \(1, 3, 4, 4\)"),
        (nn.Flatten(), r'must return logits \(B, K, H, W\) or a dict with them as "out", got \(1, 192\)'),
    ],
)
def test_networks_that_do_not_segment(layer, text):
    with pytest.raises(ValueError, match=text):
        Predictor(layer)(torch.zeros(1, 3, 8, 8))


def test_network_without_out():
    class Boxes(nn.Module):
        def forward(self, x):
            return {"boxes": x}

    with pytest.raises(ValueError, match="got dict"):
        Predictor(Boxes())(torch.zeros(1, 3, 8, 8))


def test_network_on_regions(tmp_path):
    net = hg_resnet(18, num_classes=5).train()
    x = torch.randn(1, 3, 65, 81)
    predict = Predictor(net, window=64, overlap=32)
    found = predict(x)
    assert found.shape == (1, 5, 65, 81) and torch.equal(found, predict(x))  # sampling is seeded in eval mode
    (regions,) = predict.regions(x)
    assert net.training
    (expected,) = net.eval()(x, return_regions=True)["regions"]
    assert regions.name == expected.name
    assert torch.equal(regions.graph.edge_index, expected.graph.edge_index)
    save_graph(regions.graph[0], tmp_path / "graph.pt")
    assert torch.equal(load_graph(tmp_path / "graph.pt").x, regions.graph.x)
    with pytest.raises(TypeError, match="Sequential has no regions to return; use a network of hggraph"):
        Predictor(convolutions(1)).regions(x)


@pytest.mark.gpu
def test_on_a_gpu():
    net, x = convolutions(2), torch.randn(2, 3, 40, 50)
    options = {"window": 16, "overlap": 8, "scales": (0.5, 1.0), "flip": True, "batch_size": 3}
    expected = Predictor(net, **options)(x)
    predict = Predictor(net, **options, device="cuda")
    assert next(net.parameters()).is_cuda
    for images in (x, x.cuda()):
        found = predict(images)
        assert found.device == images.device
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-3)
    assert predict.whole(x).device == x.device
    low = Predictor(net, dtype=torch.float16)(x)
    torch.testing.assert_close(low, predict.whole(x), rtol=0, atol=0.1)
