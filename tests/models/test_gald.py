"""GALD: arrangements against their composition, published counts, and what every configuration promises."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hggraph import SoftSLIC
from hggraph.models import count, export_onnx, gald, hg_resnet
from hggraph.models.gald import GALD
from hggraph.models.hg_resnet import resnet_trunk
from hggraph.nn import HGStage
from tests.models.norms import randomise_norms

AGGREGATIONS = ("aspp", "psp", "non_local", "cgnl", "hg")
CONFIGURATIONS = [
    *((name, distribution, "ga_ld") for name in AGGREGATIONS for distribution in (None, "v1", "v2")),
    *((None, distribution, "ga_ld") for distribution in ("v1", "v2")),
    *(("cgnl", distribution, arrangement) for distribution in ("v1", "v2") for arrangement in ("ld_ga", "parallel")),
]
# of those that take seconds: each part once; all of them are slow
FEW = [("aspp", "v2", "ga_ld"), ("psp", "v1", "ga_ld"), ("non_local", None, "ga_ld"), ("hg", "v2", "ga_ld")]
FEW += [("cgnl", "v1", "parallel"), (None, "v2", "ga_ld")]
ALL = [pytest.param(*each, marks=[] if each in FEW else pytest.mark.slow) for each in CONFIGURATIONS]
close = {"rtol": 1e-9, "atol": 1e-9}


class Patches(nn.Module):
    """A trunk of two convolutions, so that tests of heads take no time."""

    channels = (64, 128, 256, 512)

    def __init__(self) -> None:
        super().__init__()
        self.before, self.last = nn.Conv2d(3, 256, 8, 8), nn.Conv2d(256, 512, 1)

    def forward(self, x, attention=None):
        before = self.before(x)
        return [before, self.last(before).relu()], []


def small(aggregation="aspp", distribution="v2", arrangement="ga_ld", **options):
    """Return a network of these parts on two convolutions in place of a ResNet-18."""
    options = {"num_classes": 3, "channels": 16, "kernel_size": 3, "dilation": 2, "clusterer": SoftSLIC(16)} | options
    with torch.device("meta"):
        shapes = gald("resnet18", aggregation, distribution, arrangement, **options)
    net = GALD(
        Patches(),
        3,
        options["num_classes"],
        shapes.aggregation,
        shapes.distribution,
        arrangement=arrangement,
        channels=options["channels"],
        aux=options.get("aux", True),
    )
    net = net.to_empty(device="cpu") if any(p.is_meta for p in net.parameters()) else net
    for part in net.modules():
        if part is not net and hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return randomise_norms(net)


def millions(net):
    return sum(parameter.numel() for parameter in net.parameters()) / 1e6


@pytest.mark.parametrize(
    ("backbone", "aggregation", "distribution", "aux", "published"),
    [
        ("resnet50", "cgnl", "v1", False, "47.67"),
        ("resnet50", "cgnl", "v1", True, "52.40"),
        ("resnet101", "cgnl", "v1", False, "66.66"),
        ("resnet101", "cgnl", "v1", True, "71.39"),
    ],
)
def test_published_parameters(backbone, aggregation, distribution, aux, published):
    """Of the published code, 19 classes."""
    with torch.device("meta"):
        net = gald(backbone, aggregation, distribution, aux=aux)
    assert f"{millions(net):.2f}" == published


@pytest.mark.parametrize(
    ("aggregation", "distribution", "arrangement", "parameters", "macs"),
    [
        ("aspp", None, "ga_ld", "51.70", "221.1"),
        ("aspp", "v1", "ga_ld", "51.72", "221.1"),
        ("aspp", "v2", "ga_ld", "53.27", "227.7"),
        ("aspp", "v2", "parallel", "54.84", "234.1"),
        ("hg", "v2", "ga_ld", "58.25", "210.9"),
        (None, "v2", "ga_ld", "48.03", "206.8"),
    ],
)
def test_documented_counts(aggregation, distribution, arrangement, parameters, macs):
    with torch.device("meta"):
        net = gald("resnet50", aggregation, distribution, arrangement, aux=False)
    total = count(net, (512, 512))[-1]
    assert (f"{total.parameters / 1e6:.2f}", f"{total.macs / 1e9:.1f}") == (parameters, macs)


@pytest.mark.parametrize(("aggregation", "distribution", "arrangement"), CONFIGURATIONS)
def test_arrangement(aggregation, distribution, arrangement):
    """Logits are those of Eq. 3 over what Fig. 6 arranges."""
    net = small(aggregation, distribution, arrangement).double().eval()
    x = torch.randn(2, 3, 133, 128, dtype=torch.float64)
    with torch.no_grad():
        padded = x if net.multiple == 1 else None
        features = net.trunk(padded)[0][1]
        local = net.reduce(features)

        def aggregate(y):
            return y if net.aggregation is None else net.aggregation(y)

        def distribute(y, *beside):
            return y if net.distribution is None else net.distribution(y, *beside)

        if arrangement == "ga_ld":
            beside = [local] if distribution == "v2" and aggregation is not None else []
            y = distribute(aggregate(local), *beside)
        elif arrangement == "ld_ga":
            y = aggregate(distribute(local))
        else:
            y = torch.cat([aggregate(local), distribute(local)], 1)
        logits = net.classify(net.fuse(torch.cat([features, net.project(y)], 1)))
        want = F.interpolate(logits, (133, 128), mode="bilinear", align_corners=True)
        torch.testing.assert_close(net(x)["out"], want, **close)


@pytest.mark.parametrize(("aggregation", "distribution", "arrangement"), ALL)
def test_compiles_exports_and_folds(aggregation, distribution, arrangement):
    net = small(aggregation, distribution, arrangement).eval()
    x = torch.randn(2, 3, 128, 136)
    torch._dynamo.reset()  # the networks share their code, which is recompiled a few times only
    with torch.no_grad():
        want = net(x)["out"]
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)["out"], want, rtol=1e-4, atol=1e-5)
        program = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(program(x)["out"], want, rtol=1e-4, atol=1e-5)
        double = net.double()
        folded = double.fold()
        assert not any("BatchNorm" in type(part).__name__ for part in folded.modules())
        torch.testing.assert_close(folded(x.double())["out"], double(x.double())["out"], **close)


@pytest.mark.parametrize(
    ("aggregation", "distribution"),
    [
        ("aspp", "v2"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [("psp", "v1"), ("non_local", None), ("cgnl", "v2")]),
        pytest.param("hg", "v2", marks=pytest.mark.slow),
    ],
)
def test_onnx(aggregation, distribution, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net, x = small(aggregation, distribution).eval(), torch.randn(1, 3, 128, 136)
    assert export_onnx(net, tmp_path / "net.onnx", (128, 136)) == ["out"]
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"image": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), net(x)["out"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("aggregation", "distribution"), [("aspp", "v2"), ("cgnl", "v1"), ("hg", "v2")])
def test_batch_is_its_images(aggregation, distribution):
    net = small(aggregation, distribution).double().eval()
    x = torch.randn(3, 3, 128, 136, dtype=torch.float64)
    with torch.no_grad():
        one_by_one = torch.cat([net(image[None])["out"] for image in x])
        torch.testing.assert_close(net(x)["out"], one_by_one, **close)
        wide = torch.cat([x, torch.full_like(x, torch.nan)], 3)[..., :136]  # not contiguous, NaN around
        torch.testing.assert_close(net(wide)["out"], one_by_one, **close)
        torch.testing.assert_close(net(x.to(memory_format=torch.channels_last))["out"], one_by_one, **close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("aggregation", "distribution"), [("aspp", "v2"), ("cgnl", "v1"), ("hg", "v2")])
def test_autocast_trains(aggregation, distribution, dtype):
    net = small(aggregation, distribution)
    with torch.autocast("cpu", dtype=dtype):
        out = net(torch.randn(2, 3, 128, 128))
    assert list(out) == ["out", "aux"]
    loss = sum(y.float().square().mean() for y in out.values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_regions_of_backbone_and_context():
    options = {"num_classes": 3, "channels": 8, "kernel_size": 3, "clusterer": SoftSLIC(16)}
    net = gald("hg_resnet18", "hg", "v2", **options).eval()
    assert isinstance(net.aggregation, HGStage) and net.trunk.hg is not None
    x, attention = torch.rand(2, 3, 128, 96), torch.zeros(2, 128, 96)
    found = net(x, attention, return_regions=True)["regions"]
    assert [regions.name for regions in found] == ["hg", "context"]
    assert all(regions.assignment.size == (16, 12) and regions.graph.num_graphs == 2 for regions in found)
    out = net.train()(x)
    assert out["out"].shape == out["aux"].shape == (2, 3, 128, 96)


def test_inspect():
    x = torch.rand(2, 3, 128, 136)
    masks = small("cgnl", "v1").eval().inspect(x)
    assert masks.shape == (2, 16, 16, 17) and masks.min() >= 0.5 and masks.max() < 1 and not masks.requires_grad
    for arrangement in ("ga_ld", "ld_ga", "parallel"):
        net = small("aspp", "v2", arrangement).eval()
        affinity = net.inspect(x)
        assert affinity.shape == (2, 1, 9, 16, 17)
        torch.testing.assert_close(affinity.sum(2), torch.ones(2, 1, 16, 17))
        assert not net.distribution._forward_pre_hooks
    with pytest.raises(ValueError, match="must be in eval mode to be looked at"):
        small("aspp", "v2").train().inspect(x)
    with pytest.raises(ValueError, match="no local distribution to look at"):
        small("aspp", None).eval().inspect(x)


def test_multi_grid():
    """Table III: stage 4's dilations are 4, 8 and 16; at output stride 16 half of them."""
    for stride, dilations in ((8, [4, 8, 16]), (16, [2, 4, 8])):
        with torch.device("meta"):
            net = gald("resnet50", multi_grid=(1, 2, 4), output_stride=stride)
        assert [block.conv2.dilation[0] for block in net.trunk.stages[3]] == dilations
        assert all(block.conv2.padding == block.conv2.dilation for block in net.trunk.stages[3])
    plain = gald("resnet18", multi_grid=(1, 1), channels=8, num_classes=2).eval()
    convs = [conv for block in plain.trunk.stages[3] for conv in (block.conv1, block.conv2)]
    assert [conv.dilation for conv in convs] == [(4, 4)] * 4
    assert plain(torch.rand(1, 3, 104, 104))["out"].shape == (1, 2, 104, 104)


def test_auxiliary_head_is_half_as_wide_as_stage_3():
    with torch.device("meta"):
        net = gald("resnet50")
        assert net.aux_head[0].weight.shape == (512, 1024, 3, 3)
        assert gald("resnet50", aux=False).aux_head is None


def test_the_trunk_is_that_of_hg_resnet():
    with torch.device("meta"):
        trunk = gald("resnet50").trunk.state_dict()
        assert trunk.keys() == hg_resnet(50, hg_stages=()).trunk.state_dict().keys()
        assert trunk.keys() == resnet_trunk(50, hg_stages=()).state_dict().keys()
        assert gald("resnet50", stem="plain").trunk.stem[0].kernel_size == (7, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "vgg16"}, "`backbone` must be a name such as 'resnet50' or 'hg_resnet50', got 'vgg16'"),
        ({"backbone": "resnet20"}, r"`depth` must be one of \(18, 34, 50, 101, 152\)"),
        ({"aggregation": "mean"}, "`aggregation` must be one of 'aspp', 'psp', 'non_local', 'cgnl', 'hg', None"),
        ({"distribution": "v3"}, "`distribution` must be one of 'v1', 'v2', None, got 'v3'"),
        ({"arrangement": "ldga"}, "`arrangement` must be one of 'ga_ld', 'ld_ga', 'parallel', got 'ldga'"),
        ({"aggregation": None, "distribution": None}, r"must not both be None. .*hg_resnet\(depth, hg_stages=\(\)\)"),
        ({"aggregation": None, "arrangement": "parallel"}, "must be 'ga_ld' where only one of the two is there"),
        ({"kernel_size": 4}, "`kernel_size` must be odd"),
        ({"dilation": 0}, "`dilation` must be a whole number >= 1"),
        ({"multi_grid": (1, 2, 4)}, r"`multi_grid` must be 2 factors, one for each block of stage 4, got \(1, 2, 4\)"),
        ({"multi_grid": (1, 0)}, "`multi_grid` must be a whole number >= 1, got 0"),
        ({"backbone": "hg_resnet18", "multi_grid": (1, 2)}, "`multi_grid` must be None for 'hg_resnet18'"),
        ({"aggregation": "cgnl", "channels": 20}, "`groups` must divide `channels` and `inner_channels`, got 8, 20"),
    ],
)
def test_wrong_arguments(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        gald(**{"backbone": "resnet18", **arguments})


def test_images_too_small():
    for parts, message in (
        (("aspp", "v2"), r"Stencil\(3x3, dilation=2\) spans 5 pixels, the map has a height of 4"),
        (("cgnl", "v1"), "at least 15 x 15 pixels for 3 convolutions of stride 2, got 4 x 16"),
        (("hg", None), "The images are too small: the map that reaches the HG stage has 1 x 16 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            small(*parts).eval()(torch.rand(1, 3, 8 if parts[0] == "hg" else 32, 128))
