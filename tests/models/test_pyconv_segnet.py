"""PyConvSegNet: published counts, its head written out, and what it promises about shapes."""

import pytest
import torch
import torch.nn.functional as F

from hggraph import SoftSLIC
from hggraph.models import count, export_onnx, pyconv_resnet, pyconv_segnet
from hggraph.models.pyconv_segnet import PyConvParsingHead, cells
from tests.models.norms import randomise_norms

close = {"rtol": 1e-9, "atol": 1e-9}
# PyConv Tables 4 and 6: M of parameters, G of multiply-adds at 473 x 473 and output stride 8, auxiliary head included
PUBLISHED = {
    "resnet50": ("34.40", 116.84),
    "resnet101": ("53.39", 185.47),
    "resnet152": ("69.03", 242.00),
    "pyconv_resnet50": ("33.69", 114.18),
    "pyconv_resnet101": ("51.15", 177.29),
    "pyconv_resnet152": ("65.48", 229.11),
}


def operations(net, stride):
    """Return G of multiply-adds at 473 x 473, with those of the auxiliary head, which only training runs."""
    side = -(-473 // stride)
    aux = sum(p.numel() for p in net.aux_head.parameters() if p.dim() == 4) * side**2
    return (count(net, (473, 473))[-1].macs + aux) / 1e9


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_published_counts(backbone):
    parameters, macs = PUBLISHED[backbone]
    with torch.device("meta"):
        net = pyconv_segnet(backbone)
    assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f}" == parameters
    assert 0.98 * macs <= operations(net, 8) <= macs


def test_published_operations_at_stride_16():
    with torch.device("meta"):
        net = pyconv_segnet("resnet50", output_stride=16)
    assert 0.98 * 36.08 <= operations(net, 16) <= 36.08


def test_head():
    """Local and global parts, and their merging, written out."""
    head = randomise_norms(PyConvParsingHead(8, 4, channels=64, bins=4)).double().eval()
    x = torch.randn(2, 8, 5, 11, dtype=torch.float64)

    def norm(x, norm):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).relu()

    def parse(x, part):
        first, pyramid, last = part
        x = norm(F.conv2d(x, first[0].weight), first[1])
        levels = [
            F.conv2d(x, level.weight, padding=k // 2, groups=g)
            for level, k, g in zip(pyramid[0].levels, (3, 5, 7, 9), (1, 4, 8, 16), strict=True)
        ]
        return norm(F.conv2d(norm(torch.cat(levels, 1), pyramid[1]), last[0].weight), last[1])

    pooled = F.adaptive_avg_pool2d(x, (2, 4))
    around = F.interpolate(parse(pooled, head.global_part), (5, 11), mode="bilinear", align_corners=True)
    both = torch.cat([parse(x, head.local_part), around], 1)
    want = norm(F.conv2d(both, head.merge[0].weight, padding=1), head.merge[1])
    with torch.no_grad():
        torch.testing.assert_close(head(x), want, **close)
        assert head(x[:0]).shape == (0, 4, 5, 11)


def test_cells_follow_the_shape():
    assert cells((60, 60), 9) == (9, 9)
    assert cells((60, 120), 9) == (5, 9) and cells((120, 60), 9) == (9, 5)
    assert cells((1, 500), 9) == (1, 9)
    assert cells((2, 3), 9) == (6, 9)  # more cells than pixels


@pytest.mark.parametrize("backbone", ["resnet18", "pyconv_resnet18", "hg_resnet18"])
@pytest.mark.parametrize("stride", [8, 16])
def test_shapes(backbone, stride):
    net = pyconv_segnet(backbone, 3, channels=64, output_stride=stride, clusterer=SoftSLIC(4))
    x = torch.rand(2, 3, 65, 96)
    assert {name: tuple(y.shape) for name, y in net(x).items()} == dict.fromkeys(("out", "aux"), (2, 3, 65, 96))
    out = net.eval()(x, return_regions=True)
    assert len(out["regions"]) == (backbone == "hg_resnet18")


@pytest.mark.parametrize("backbone", [pytest.param("resnet18", marks=pytest.mark.slow), "pyconv_resnet18"])
def test_batch_folded_compiled_and_exported(backbone):
    net = randomise_norms(pyconv_segnet(backbone, 3, channels=64)).double().eval()
    x = torch.randn(2, 3, 64, 72, dtype=torch.float64)
    with torch.no_grad():
        want = torch.cat([net(image[None])["out"] for image in x])
        torch.testing.assert_close(net(x)["out"], want, **close)
        folded = net.fold()
        assert not any("BatchNorm" in type(part).__name__ for part in folded.modules())
        torch.testing.assert_close(folded(x)["out"], want, **close)
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)["out"], want, **close)
        program = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(program(x)["out"], want, **close)


@pytest.mark.slow
def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net, x = pyconv_segnet("pyconv_resnet18", 3, channels=64).eval(), torch.randn(1, 3, 64, 72)
    assert export_onnx(net, tmp_path / "net.onnx", (64, 72)) == ["out"]
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"image": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), net(x)["out"], rtol=1e-3, atol=1e-4)


def test_weights_of_the_backbone(tmp_path):
    trunk = randomise_norms(pyconv_resnet(18))
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    net = pyconv_segnet("pyconv_resnet18", 3, channels=64, pretrained=tmp_path / "trunk.pth")
    assert torch.equal(net.trunk.layer2[0].conv1.levels[1].weight, trunk.layer2[0].conv1.levels[1].weight)
    with pytest.raises(ValueError, match="no weights of PyConvResNets to download"):
        pyconv_segnet("pyconv_resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "pyconvresnet50"}, "`backbone` must be a name such as 'resnet50', 'pyconv_resnet50'"),
        ({"backbone": "pyconv_resnet20"}, r"`depth` must be one of \(18, 34, 50, 101, 152\), got 20"),
        ({"channels": 100}, "must divide the 100 inputs and the 25 outputs of its level, got 4; the nearest .* is 5"),
        ({"bins": 0}, "`bins` must be a whole number >= 1"),
        ({"output_stride": 4}, "`output_stride` must be 8, 16 or 32"),
    ],
)
def test_wrong_arguments(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        pyconv_segnet(**({"backbone": "resnet18"} | arguments))
