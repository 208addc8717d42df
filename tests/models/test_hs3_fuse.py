"""HS3-Fuse and HRNet-OCR: published counts, the fusing written out, and what every backbone promises."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hggraph import SoftSLIC
from hggraph.models import from_pretrained, hg_hrnet, hs3_fuse, save_pretrained
from hggraph.models.hs3_fuse import HS3Fuse, ocr_widths
from tests.models.forms import compiled_and_exported, single_and_folded
from tests.models.norms import randomise_norms

close = {"rtol": 1e-9, "atol": 1e-9}
SMALL = "hrnet_w18_small_v2"
slow = pytest.mark.slow
FUSED = {"tap_classes": (9, 14)}


class Patches(nn.Module):
    """A trunk of three convolutions, so that tests of what stands on it take no time."""

    channels = (6, 10, 14)

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 10, 2, 2), nn.Conv2d(10, 14, 1)])

    def forward(self, x, attention=None):
        maps = []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return maps, []


def small(tap_classes=(2, 3), **options):
    """Return a network of 4 classes on three convolutions."""
    return randomise_norms(HS3Fuse(Patches(), 3, 4, tap_classes=tap_classes, widths=(6, 8, 10), **options))


def giga_macs(net, size):
    """Return what one image costs, and what its convolutions alone cost."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.empty(1, 3, *size, device="meta"))
    flops = counter.get_flop_counts()["Global"]
    return [sum(values) / 2e9 for values in (flops.values(), [flops[torch.ops.aten.convolution]])]


@pytest.mark.parametrize(
    ("backbone", "parameters"),
    [(SMALL, 6_379_278), ("hrnet_w18", 12_080_818), ("hrnet_w32", 32_953_894), ("hrnet_w48", 70_372_678)],
)
def test_published_parameters(backbone, parameters):
    """HRNet-OCR, 19 classes."""
    with torch.device("meta"):
        net = hs3_fuse(backbone, channels=512)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("options", "published", "documented", "convolutions"),
    [
        ({}, 154, "155.1", "154.2"),
        (FUSED, 224, "226.5", "225.1"),
        (FUSED | {"divider": 1.7}, 154, "153.0", "152.1"),
    ],
)
def test_published_operations(options, published, documented, convolutions):
    """HS3 Table 3, Cityscapes: HRNetv2-w18-OCR, HS3-Fuse and its lighter variant."""
    with torch.device("meta"):
        net = hs3_fuse(SMALL, **options)
    total, of_convolutions = giga_macs(net, (1024, 2048))
    assert 0.98 * published <= total <= 1.02 * published
    assert 0.98 * published <= of_convolutions <= 1.02 * published  # the paper does not say whether it counts the rest
    assert (f"{total:.1f}", f"{of_convolutions:.1f}") == (documented, convolutions)


def test_published_operations_without_ocr():
    """HS3 Tables 1 and 3: 76 for HRNetv2-w18, and 22 for HRNetv2-w18-OCR on NYUD-v2, both cut off, not rounded."""
    with torch.device("meta"):
        assert f"{giga_macs(hg_hrnet('w18_small_v2', hg=False), (1024, 2048))[0]:.1f}" == "76.9"
        total, of_convolutions = giga_macs(hs3_fuse(SMALL, 40), (480, 640))
    assert f"{of_convolutions:.2f}" == "22.77" and total < 1.02 * 22.77


def test_widths():
    with torch.device("meta"):
        net = hs3_fuse(SMALL, **FUSED)
    # 414 channels go into both the coarse head and the 3x3 of the last block
    assert [ocr.in_channels for ocr in (*net.tap_ocrs, net.ocr)] == [54, 126, 270 + 96 + 48]
    assert net.ocr.coarse[0].weight.shape == (414, 414, 1, 1) and net.ocr.pixels[0].weight.shape == (192, 414, 3, 3)
    assert [ocr.attention.value[0].out_channels for ocr in (*net.tap_ocrs, net.ocr)] == [24, 48, 96]
    assert [ocr.coarse[3].out_channels for ocr in (*net.tap_ocrs, net.ocr)] == [9, 14, 19]
    assert ocr_widths(512) == [128, 256, 512] and ocr_widths(512, 1.7) == [72, 152, 304]
    assert ocr_widths(192, 1.0) == [48, 96, 192] and ocr_widths(192, 2) == [24, 48, 96]
    assert ocr_widths(20) == [5, 10, 20] and ocr_widths(16, 16) == [8, 8, 8]
    with torch.device("meta"):
        wide = [hs3_fuse(name).classify.in_channels for name in ("hrnet_w18", "resnet18")]
    assert wide == [192, 512]


def test_fusing():
    """The two stages' features at the last map's size beside it, the nearest stage's first."""
    net, x = small().double().eval(), torch.randn(2, 3, 40, 56, dtype=torch.float64)
    with torch.no_grad():
        maps, _ = net.trunk(x)
        (first, _), (second, _) = net.tap_ocrs[0](maps[0]), net.tap_ocrs[1](maps[1])
        assert first.shape == (2, 6, 10, 14) and maps[2].shape == (2, 14, 5, 7)
        first = F.interpolate(first, (5, 7), mode="bilinear", align_corners=True)
        features, coarse = net.ocr(torch.cat([maps[2], second, first], 1))
        want = F.interpolate(net.classify(features), (40, 56), mode="bilinear", align_corners=True)
        out = net(x)
        assert list(out) == ["out"]
        torch.testing.assert_close(out["out"], want, **close)
    assert coarse.shape == (2, 4, 5, 7)


def test_outputs_in_training():
    net, x = small(dropout=0.0).double(), torch.randn(2, 3, 40, 56, dtype=torch.float64)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()  # the same function in both modes
    out = net(x)
    assert {name: y.shape[1] for name, y in out.items()} == {"out": 4, "tap_1": 2, "tap_2": 3, "aux": 4}
    assert all(y.shape[2:] == (40, 56) for y in out.values())
    maps, _ = net.trunk(x)
    for i in (0, 1):
        want = F.interpolate(net.tap_ocrs[i](maps[i])[1], (40, 56), mode="bilinear", align_corners=True)
        torch.testing.assert_close(out[f"tap_{i + 1}"], want, **close)
    sum(y.square().mean() for y in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_without_fusing():
    net, x = small(None).double(), torch.randn(2, 3, 40, 56, dtype=torch.float64)
    assert list(net(x)) == ["out", "aux"]
    net.eval()
    with torch.no_grad():
        features, _ = net.ocr(net.trunk(x)[0][-1])
        want = F.interpolate(net.classify(features), (40, 56), mode="bilinear", align_corners=True)
        torch.testing.assert_close(net(x)["out"], want, **close)


def learns(net, x):
    """Return the losses of a few steps on all outputs."""
    target = (torch.arange(x.shape[3]) < x.shape[3] // 2).long().expand(len(x), *x.shape[2:])  # the left half
    x = x + target[:, None]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = sum(F.cross_entropy(y, target) for y in net(x).values())
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_learns():
    losses = learns(small(dropout=0.0), torch.randn(2, 3, 32, 32))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("tap_classes", [None, (2, 3)])
def test_batch_and_folded(tap_classes):
    batch, *others = single_and_folded(small(tap_classes), torch.randn(2, 3, 40, 56)).values()
    torch.testing.assert_close(others, [batch, batch], **close)
    folded = small(tap_classes).fold()
    assert not any("BatchNorm" in type(part).__name__ for part in folded.modules())


@slow
@pytest.mark.parametrize("tap_classes", [None, (2, 3)])
def test_compiled_and_exported(tap_classes):
    eager, *others = compiled_and_exported(small(tap_classes), torch.randn(2, 3, 40, 56)).values()
    torch.testing.assert_close(others, [eager, eager], **close)


def test_autocast():
    net = small()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.randn(2, 3, 40, 56))
    sum(y.float().square().mean() for y in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


BACKBONES = {
    SMALL: (4, [54, 126, 270]),
    "hg_hrnet_w18_small_v2": (4, [54, 126, 270]),
    "resnet18": (8, [128, 256, 512]),
    "hg_resnet18": (8, [128, 256, 512]),
    "deeplab_v3_plus_resnet18": (4, [128, 256, 256]),
    "deeplab_v3_plus_hg_resnet18": (4, [128, 256, 256]),
}
FEW = (SMALL, "hg_resnet18", "deeplab_v3_plus_resnet18")  # each part once; all of them are slow


def tiny(backbone, **options):
    """Return a network with narrow OCR blocks and few pixels to a region."""
    options = {"tap_classes": (2, 3), "channels": 16, "clusterer": SoftSLIC(4, iterations=1)} | options
    return hs3_fuse(backbone, 4, **options)


@pytest.mark.parametrize("backbone", [name if name in FEW else pytest.param(name, marks=slow) for name in BACKBONES])
def test_backbones(backbone):
    """Outputs, gradients, regions, and which maps are fused."""
    stride, (first, second, last) = BACKBONES[backbone]
    net, x = tiny(backbone), torch.rand(2, 3, 90, 96)
    assert [ocr.in_channels for ocr in (*net.tap_ocrs, net.ocr)] == [first, second, last + 8 + 4]
    out = net(x)
    assert {name: tuple(y.shape) for name, y in out.items()} == {
        name: (2, classes, 90, 96) for name, classes in (("out", 4), ("tap_1", 2), ("tap_2", 3), ("aux", 4))
    }
    sum(y.square().mean() for y in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad():
        found = net.eval()(x, torch.rand(2, 90, 96), return_regions=True)
        logits, _ = net.predict(F.pad(x, (0, 0, 0, 6)), None)
    assert logits["out"].shape == (2, 4, 96 // stride, 96 // stride)
    regions = [each.name for each in found["regions"]]
    assert regions == {True: [f"branch {i}" for i in (1, 2, 3, 4)], False: ["hg"]}["hrnet" in backbone] * (
        "hg_" in backbone
    )


@slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_folded_compiled_and_exported(backbone):
    for forms in (single_and_folded, compiled_and_exported):
        want, *others = forms(tiny(backbone), torch.randn(2, 3, 64, 64)).values()
        torch.testing.assert_close(others, [want, want], **close)


@slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_learn(backbone):
    losses = learns(tiny(backbone, dropout=0.0), torch.randn(2, 3, 64, 64))
    assert losses[-1] < 0.7 * losses[0]


def test_published_and_loaded_again(tmp_path):
    arguments = {"backbone": "resnet18", "num_classes": 3, "tap_classes": (2, 2), "channels": 16}
    net = hs3_fuse(**arguments).eval()
    save_pretrained(net, tmp_path / "net", model="hs3_fuse", arguments=arguments)
    assert json.loads((tmp_path / "net" / "config.json").read_text())["arguments"]["tap_classes"] == [2, 2]
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(from_pretrained(tmp_path / "net")(x)["out"], net(x)["out"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "vgg16"}, "`backbone` must be 'hrnet_' and one of w18, w32, w48, w18_small_v2, a ResNet"),
        ({"backbone": "hrnet_w40"}, "got 'hrnet_w40'"),
        ({"backbone": "resnet20"}, r"`depth` must be one of \(18, 34, 50, 101, 152\) .* got 20"),
        ({"tap_classes": 9}, "`tap_classes` must be two numbers of classes, of stages 2 and 3, or None .* got 9"),
        ({"tap_classes": (9, 14, 19)}, r"`tap_classes` must be two numbers of classes.* got \(9, 14, 19\)"),
        ({"tap_classes": (9, 0)}, "`tap_classes` must be a whole number >= 1, got 0"),
        ({"channels": 4}, "`channels` must be a whole number >= 8, got 4"),
        ({"divider": 0.5}, "`divider` must be a number from 1 to `channels`, got 0.5 with channels=192"),
        ({"divider": float("nan")}, "`divider` must be a number from 1 to `channels`, got nan"),
        ({"num_classes": 0}, "`num_classes` must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        hs3_fuse(**arguments)
