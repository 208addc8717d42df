"""DeepLabV3+: its decoder written out, counts, and what it promises about shapes."""

import pytest
import torch
import torch.nn.functional as F

from hggraph import SoftSLIC
from hggraph.models import count, deeplab_v3_plus
from hggraph.models.deeplab_v3_plus import DeepLabV3PlusDecoder
from hggraph.nn import HGStage
from tests.models.norms import randomise_norms

close = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize(
    ("backbone", "parameters", "macs"), [("resnet50", "40.35", "69.2"), ("resnet101", "59.34", "88.6")]
)
def test_documented_counts(backbone, parameters, macs):
    with torch.device("meta"):
        net = deeplab_v3_plus(backbone, aux=False)
    total = count(net, (512, 512))[-1]
    assert (f"{total.parameters / 1e6:.2f}", f"{total.macs / 1e9:.1f}") == (parameters, macs)
    pooled = 2048 * 256 + 512
    aspp = 2 * pooled + 3 * (9 * 2048 * 256 + 512) + 5 * 256 * 256 + 512
    refine = 9 * 304 * 256 + 512 + 9 * 256 * 256 + 512
    assert sum(p.numel() for p in net.decoder.parameters()) == aspp + 256 * 48 + 96 + refine


@pytest.mark.parametrize(
    ("backbone", "stride", "of_map", "dilations"),
    [
        ("resnet18", 8, 8, [12, 24, 36]),
        ("resnet18", 16, 16, [6, 12, 18]),
        ("resnet18", 32, 32, [3, 6, 9]),
        ("hg_resnet18", 8, 8, [12, 24, 36]),
        ("hg_resnet18", 16, 16, [6, 12, 18]),
        ("hg_resnet18", 32, 16, [6, 12, 18]),
    ],
)
def test_dilations_follow_the_stride(backbone, stride, of_map, dilations):
    net = deeplab_v3_plus(backbone, channels=8, output_stride=stride, clusterer=SoftSLIC(4)).eval()
    assert [branch[0].dilation[0] for branch in net.decoder.aspp.branches[2:]] == dilations
    with torch.no_grad():
        maps, _ = net.trunk(torch.rand(1, 3, 128, 128))
    assert [maps[0].shape[2], maps[-1].shape[2]] == [32, 128 // of_map]


def test_decoder():
    decoder = randomise_norms(DeepLabV3PlusDecoder(6, 10, 8, low_channels=4, stride=32)).double().eval()
    low, x = torch.randn(2, 6, 12, 16, dtype=torch.float64), torch.randn(2, 10, 3, 4, dtype=torch.float64)

    def layer(x, block):
        conv, norm, _ = block
        y = F.conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2)
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).relu()

    with torch.no_grad():
        coarse = F.interpolate(decoder.aspp(x), (12, 16), mode="bilinear", align_corners=True)
        first, second = decoder.refine
        want = layer(layer(torch.cat([coarse, layer(low, decoder.low)], 1), first), second)
        torch.testing.assert_close(decoder(low, x), want, **close)
        assert decoder(low[:0], x[:0]).shape == (0, 8, 12, 16)


@pytest.mark.parametrize("backbone", ["resnet18", "hg_resnet18"])
def test_logits_and_training(backbone):
    net = deeplab_v3_plus(backbone, 3, channels=16, low_channels=8, clusterer=SoftSLIC(4))
    x = torch.rand(2, 3, 90, 129)
    out = net(x)
    assert {name: tuple(y.shape) for name, y in out.items()} == dict.fromkeys(("out", "aux"), (2, 3, 90, 129))
    sum(y.square().mean() for y in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad():
        found = net.eval()(x, return_regions=True)
        assert list(found) == ["out", "regions"] and len(found["regions"]) == (backbone == "hg_resnet18")
        assert isinstance(net.trunk.hg, HGStage) == (backbone == "hg_resnet18")
        maps, _ = net.trunk(x)
        logits = net.classify(net.decoder(maps[0], maps[-1]))
        want = F.interpolate(logits, (90, 129), mode="bilinear", align_corners=True)
        torch.testing.assert_close(found["out"], want)


def test_learns():
    net = deeplab_v3_plus("resnet18", 3, channels=16, low_channels=8, dropout=0.0)
    x = torch.randn(2, 3, 48, 48)
    target = (torch.arange(48) < 24).long().expand(2, 48, 48)  # the left and the right half
    x += target[:, None]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x)["out"], target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def small(backbone):
    net = deeplab_v3_plus(backbone, 3, channels=16, low_channels=8, clusterer=SoftSLIC(4))
    return randomise_norms(net).double().eval(), torch.randn(2, 3, 64, 72, dtype=torch.float64)


@pytest.mark.parametrize("backbone", ["resnet18", "hg_resnet18"])
def test_batch_and_folded(backbone):
    net, x = small(backbone)
    with torch.no_grad():
        want = torch.cat([net(image[None])["out"] for image in x])
        torch.testing.assert_close(net(x)["out"], want, **close)
        folded = net.fold()
        assert folded.aux_head is None
        assert not any("BatchNorm" in type(part).__name__ for part in folded.modules())
        torch.testing.assert_close(folded(x)["out"], want, **close)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "hg_resnet18"])
def test_compiled_and_exported(backbone):
    net, x = small(backbone)
    with torch.no_grad():
        want = net(x)["out"]
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)["out"], want, **close)
        program = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(program(x)["out"], want, **close)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "xception"}, "`backbone` must be a name such as 'resnet50' or 'hg_resnet50', got 'xception'"),
        ({"backbone": "resnet20"}, r"`depth` must be one of \(18, 34, 50, 101, 152\) .* got 20"),
        ({"output_stride": 4}, "`output_stride` must be 8, 16 or 32"),
        ({"channels": 0}, "`channels` must be a whole number >= 1, got 0"),
        ({"low_channels": 0}, "`low_channels` must be a whole number >= 1, got 0"),
        ({"num_classes": 0}, "`num_classes` must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        deeplab_v3_plus(**({"backbone": "resnet18"} | arguments))


def test_wrong_stride_and_one_image():
    with pytest.raises(ValueError, match="`stride` must be 32 at most, got 64"):
        DeepLabV3PlusDecoder(8, 8, 8, stride=64)
    with pytest.raises(ValueError, match="one value per channel after global pooling"):
        deeplab_v3_plus("resnet18", channels=8)(torch.rand(1, 3, 64, 64))
