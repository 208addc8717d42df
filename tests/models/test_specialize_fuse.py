"""Specialize and Fuse: its parts put together, what training sees, and what every backbone promises."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hggraph import SoftSLIC
from hggraph.models import count, from_pretrained, hg_hrnet, save_pretrained, specialize_fuse
from hggraph.models.resnet_decoder import HRNetFusion, ResNetDecoder
from hggraph.models.specialize_fuse import SpecializeFuse
from hggraph.schemes.specialize import RULES, SpecializeLoss, fuse
from tests.models.forms import compiled_and_exported, single_and_folded
from tests.models.norms import randomise_norms

close = {"rtol": 1e-9, "atol": 1e-9}
CONTEXTS = ["none", "anl", "multi_anl", "coarse_to_fine"]


class Patches(nn.Module):
    """A trunk of one convolution, so that tests of what stands on it take no time."""

    channels = (10,)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 4, 4)

    def forward(self, x, attention=None):
        return [self.conv(x).relu()], []


class Pyramid(nn.Module):
    """A trunk of four maps like a ResNet's."""

    channels = (6, 8, 10, 12)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, s, s) for a, b, s in zip(widths[:4], widths[1:], (4, 2, 2, 2), strict=True)
        )

    def forward(self, x, attention=None):
        maps = []
        for conv in self.convs:
            x = conv(x).relu()
            maps.append(x)
        return maps, []


def small(context="coarse_to_fine", levels=4, **options):
    """Return a network of 4 classes on one convolution."""
    return randomise_norms(SpecializeFuse(Patches(), 3, 4, levels=levels, channels=8, context=context, **options))


def with_decoder():
    trunk = Pyramid()
    decoder = ResNetDecoder(trunk.channels, 2)
    return randomise_norms(SpecializeFuse(trunk, 3, 4, decoder=decoder, levels=3, channels=8))


@pytest.mark.parametrize("levels", [1, 2, 4, 5])
def test_put_together(levels):
    """In eval mode: padded, fused at the papers' threshold, brought to the images' size, cropped."""
    net, x = small(levels=levels).double().eval(), torch.randn(2, 3, 40, 70, dtype=torch.float64)
    if net.unity_head is not None:
        nn.init.normal_(net.unity_head.unity.weight)
        nn.init.constant_(net.unity_head.unity.bias, 2.3)  # some cells on each side
    padded = F.pad(x, (0, 58, 0, 24)) if levels == 5 else F.pad(x, (0, 26, 0, 24))
    with torch.no_grad():
        (features,), _ = net.trunk(padded)
        semantic = net.semantic_head(features)
        unity = [u.sigmoid() for u in net.unity_head(features)] if levels > 1 else []
        fused = fuse(semantic, unity, 0.9)
        want = F.interpolate(fused, padded.shape[2:], mode="bilinear", align_corners=True)[:, :, :40, :70]
        out = net(x)
    assert list(out) == ["out"] and net.strides == tuple(4 << level for level in reversed(range(levels)))
    torch.testing.assert_close(out["out"], want, **close)
    if levels == 4:
        assert all((u < 0.9).any() for u in unity) and any((u >= 0.9).any() for u in unity)


def test_outputs_in_training():
    net = small()
    out = net(torch.randn(2, 3, 40, 70))
    assert {name: type(value) for name, value in out.items()} == {"out": torch.Tensor, "semantic": list, "unity": list}
    sizes = [(2, 3), (4, 6), (8, 12), (16, 24)]
    assert [tuple(y.shape) for y in out["semantic"]] == [(2, 4, *size) for size in sizes]
    assert [tuple(u.shape) for u in out["unity"]] == [(2, *size) for size in sizes[:-1]]
    assert out["out"].shape == (2, 4, 40, 70)


def test_the_threshold_can_be_set():
    net, x = small().double().eval(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        semantic = net.semantic_head(net.trunk(x)[0][0])
        for threshold, level in ((0, semantic[0].repeat_interleave(8, 2).repeat_interleave(8, 3)), (1.1, semantic[-1])):
            net.threshold = threshold
            want = F.interpolate(level, (64, 64), mode="bilinear", align_corners=True)
            torch.testing.assert_close(net(x)["out"], want, **close)


def learns(net, x, loss, steps=8):
    """Return the losses of a few steps."""
    target = (torch.arange(x.shape[3]) < x.shape[3] // 3).long().expand(len(x), *x.shape[2:]).clone()  # the left third
    x = x + target[:, None]
    target[:, :2] = 255
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        parts = loss(net(x), target)
        parts["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(parts["loss"].item())
    return losses


@pytest.mark.parametrize("context", CONTEXTS)
def test_learns(context):
    torch.manual_seed(0)
    losses = learns(small(context), torch.randn(2, 3, 60, 70), SpecializeLoss())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("rule", RULES)
def test_learns_by_every_rule(rule):
    torch.manual_seed(0)
    losses = learns(with_decoder(), torch.randn(2, 3, 60, 70), SpecializeLoss(rule=rule))
    assert losses[-1] < 0.8 * losses[0]


def test_one_level_learns():
    torch.manual_seed(0)
    losses = learns(small(levels=1), torch.randn(2, 3, 32, 40), SpecializeLoss())
    assert losses[-1] < 0.8 * losses[0]


def test_nothing_to_learn():
    net = small()
    parts = SpecializeLoss()(net(torch.randn(2, 3, 32, 32)), torch.full((2, 32, 32), 255))
    parts["loss"].backward()
    assert parts["loss"] == 0 and all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_autocast():
    net = small()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.randn(2, 3, 32, 64))
        loss = SpecializeLoss()(out, torch.randint(4, (2, 32, 64)))["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


FORMS = [single_and_folded, compiled_and_exported]


@pytest.mark.parametrize("forms", FORMS)
def test_batch_folded_compiled_and_exported(forms):
    want, *others = forms(small(levels=2), torch.randn(2, 3, 40, 56)).values()
    torch.testing.assert_close(others, [want, want], **close)


def test_folded_has_no_normalisation_and_does_not_learn():
    folded = small(levels=2).fold()
    assert not any("BatchNorm" in type(part).__name__ for part in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_contexts_folded_compiled_and_exported(context, forms):
    want, *others = forms(small(context), torch.randn(2, 3, 40, 56)).values()
    torch.testing.assert_close(others, [want, want], **close)


@pytest.mark.slow
@pytest.mark.parametrize("forms", FORMS)
def test_with_decoder_folded_compiled_and_exported(forms):
    want, *others = forms(with_decoder(), torch.randn(2, 3, 40, 56)).values()
    torch.testing.assert_close(others, [want, want], **close)


def test_folded_does_less():
    net = small()
    before, after = (count(each, (64, 64))[-1].macs for each in (net, net.fold()))
    assert after < before
    assert not hasattr(net.fold().semantic_head.aggregations[0], "query")


def layer(x, conv, norm=None, relu=False):
    y = F.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding)
    if norm is not None:
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return y.relu() if relu else y


def test_fusion():
    """HRNet's: 1x1 and bilinear upwards, a 3x3 of stride 2 for each halving downwards, sums, ReLU."""
    fusion = randomise_norms(HRNetFusion([2, 3, 4])).double().eval()
    maps = [torch.randn(2, c, *s, dtype=torch.float64) for c, s in ((2, (9, 12)), (3, (5, 6)), (4, (3, 3)))]
    with torch.no_grad():
        found = fusion(maps)
        for i, (x, paths) in enumerate(zip(maps, fusion.paths, strict=True)):
            total = x
            for j, (y, path) in enumerate(zip(maps, paths, strict=True)):
                if j > i:
                    assert path[0].weight.shape == (maps[i].shape[1], y.shape[1], 1, 1) and len(path) == 2
                    y = F.interpolate(layer(y, *path), x.shape[2:], mode="bilinear", align_corners=True)
                    total = total + y
                elif j < i:
                    for k in range(j, i):
                        conv, norm = path[3 * (k - j)], path[3 * (k - j) + 1]
                        assert conv.weight.shape[1:] == (maps[j].shape[1], 3, 3) and conv.stride == (2, 2)
                        y = layer(y, conv, norm, relu=k + 1 < i)
                    total = total + y
            torch.testing.assert_close(found[i], total.relu(), **close)


def test_decoder():
    decoder = randomise_norms(ResNetDecoder((5, 6, 7, 8), 2)).double().eval()
    maps = [torch.randn(2, c, s, 2 * s, dtype=torch.float64) for c, s in ((5, 8), (6, 4), (7, 2), (8, 2))]
    with torch.no_grad():
        found = decoder(maps)
        halved = [*maps[:3], F.avg_pool2d(maps[3], 2)]  # a stage on regions has no stride
        reduced = [layer(x, *part[:2], relu=True) for part, x in zip(decoder.reduce, halved, strict=True)]
        up = [F.interpolate(x, (8, 16), mode="bilinear", align_corners=True) for x in decoder.fuse(reduced)]
        torch.testing.assert_close(found, torch.cat(up, 1), **close)
    assert found.shape == (2, 30, 8, 16) and decoder.channels == 30
    with pytest.raises(ValueError, match="`in_channels` must be those of four stages, got"):
        ResNetDecoder((5, 6, 7))
    with pytest.raises(ValueError, match="`maps` must be those of four stages, got 3"):
        decoder(maps[:3])


def test_published_widths():
    """Sec. 5.1.3: 720 channels for both backbones, 64 in the unity head, 512 in the semantic head."""
    with torch.device("meta"):
        for backbone in ("hrnet_w48", "resnet101"):
            net = specialize_fuse(backbone)
            assert net.strides == (32, 16, 8, 4) and net.threshold == 0.9 and net.multiple == 32
            assert net.semantic_head.in_channels == net.unity_head.in_channels == 720
            assert net.unity_head.embed.out_channels == 64 and net.semantic_head.project.out_channels == 512
        assert net.decoder.reduce[3][0].weight.shape == (384, 2048, 1, 1)


@pytest.mark.slow
def test_operations_of_the_heads():
    """With the heads the network may take 1.17 times as long as HRNet with its own; in operations it stays below."""
    with torch.device("meta"):
        whole = count(specialize_fuse("hrnet_w48").fold(), (512, 512))[-1].macs
        backbone = count(hg_hrnet("w48", hg=False, num_classes=150).fold(), (512, 512))[-1].macs
    assert whole < 1.1 * backbone


BACKBONES = ["hrnet_w18_small_v2", "hg_hrnet_w18_small_v2", "resnet18", "hg_resnet18"]


def tiny(backbone, **options):
    options = {"channels": 16, "decoder_channels": 8, "clusterer": SoftSLIC(4, iterations=1)} | options
    return specialize_fuse(backbone, 4, **options)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones(backbone):
    """Outputs, a step of training, and regions."""
    net, x = tiny(backbone), torch.rand(2, 3, 90, 96)
    out = net(x)
    assert out["out"].shape == (2, 4, 90, 96) and out["semantic"][-1].shape == (2, 4, 24, 24)
    SpecializeLoss()(out, torch.randint(4, (2, 90, 96)))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad():
        found = net.eval()(x, torch.rand(2, 90, 96), return_regions=True)
    regions = {"hg_hrnet_w18_small_v2": [f"branch {i}" for i in (1, 2, 3, 4)], "hg_resnet18": ["hg"]}
    assert [each.name for each in found["regions"]] == regions.get(backbone, [])
    assert list(found) == ["out", "regions"]


@pytest.mark.slow
@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_folded_compiled_and_exported(backbone, forms):
    want, *others = forms(tiny(backbone), torch.randn(2, 3, 64, 64)).values()
    torch.testing.assert_close(others, [want, want], **close)


def test_published_and_loaded_again(tmp_path):
    arguments = {"backbone": "resnet18", "num_classes": 3, "levels": 2, "channels": 16, "decoder_channels": 4}
    net = specialize_fuse(**arguments).eval()
    save_pretrained(net, tmp_path / "net", model="specialize_fuse", arguments=arguments)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(from_pretrained(tmp_path / "net")(x)["out"], net(x)["out"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "vgg16"}, "`backbone` must be 'hrnet_' and one of w18, w32, .* got 'vgg16'"),
        ({"backbone": "hrnet_w40"}, "got 'hrnet_w40'"),
        ({"backbone": "resnet20"}, r"`depth` must be one of \(18, 34, 50, 101, 152\) .* got 20"),
        ({"levels": 0}, "`levels` must be a whole number >= 1, got 0"),
        ({"channels": 1}, "`channels` must be a whole number >= 2, got 1"),
        ({"unity_channels": 0}, "`channels` must be a whole number >= 1, got 0"),
        ({"backbone": "resnet18", "decoder_channels": 0}, "`channels` must be a whole number >= 1, got 0"),
        ({"num_classes": 1}, "`num_classes` must be a whole number >= 2, got 1"),
        ({"threshold": -0.5}, r"`threshold` must be in \[0, 1\].* got -0.5"),
        ({"context": "asp"}, "`context` must be one of .* got 'asp'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        specialize_fuse(**({"backbone": "hrnet_w18_small_v2"} | arguments))
