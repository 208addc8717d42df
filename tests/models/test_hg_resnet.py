"""HG-ResNet against the dense network, published counts, and what it promises about shapes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hggraph import HGStage, SoftSLIC
from hggraph.models import hg_resnet
from hggraph.nn import DeformConv2d
from tests.models.norms import randomise_norms

close = {"rtol": 1e-9, "atol": 1e-9}


def millions(model):
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def test_published_parameters():
    """HG-Conv Table 2: 52.07 M, +1.20 M, +6.29 M, +7.25 M; 19 classes, without the auxiliary head."""
    dense = millions(hg_resnet(101, hg_stages=(), aux=False))
    assert f"{dense:.2f}" == "52.07"
    for variant, hg_stages, more in (("dcn", (), "1.20"), ("dilation", (4,), "6.29"), ("dcn", (4,), "7.25")):
        assert f"{millions(hg_resnet(101, variant, hg_stages, aux=False)) - dense:.2f}" == more


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("hg_stages", [(4,), (3, 4)])
def test_one_region_per_pixel_is_the_dense_network(depth, hg_stages):
    """The stages on regions are then those of stride and dilation 1, and the 1x1 sees their concatenation."""
    pixels = SoftSLIC(num_regions=35, feature_scale=1e4)  # so far apart that assignments are hard
    net = randomise_norms(hg_resnet(depth, "dilation", hg_stages, 5, clusterer=pixels)).double().eval()
    x = torch.randn(2, 3, 37, 50, dtype=torch.float64)
    on_pixels = net.trunk.hg.to_stage().eval()
    with torch.no_grad():
        before = net.trunk.stem(x)
        for stage in net.trunk.stages:
            before = stage(before)
        assert before.shape[2:] == (5, 7)
        after = net.trunk.hg.fuse(torch.cat([before, on_pixels(before)], 1))
        want = F.interpolate(net.head(after), (37, 50), mode="bilinear", align_corners=True)
        torch.testing.assert_close(net(x)["out"], want, **close)


@pytest.mark.parametrize("depth", [18, 50])
def test_weights_go_to_regions_and_back(depth):
    stage = randomise_norms(hg_resnet(depth, hg_stages=()).trunk.stages[3])
    back = HGStage.from_stage(stage).to_stage()
    want = stage.state_dict()
    assert back.state_dict().keys() == want.keys()
    assert all(torch.equal(value, want[name]) for name, value in back.state_dict().items())
    x = torch.randn(1, stage[0].conv1.in_channels, 4, 5)
    for conv in (part for part in stage.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)):
        conv.dilation = conv.padding = conv.stride = (1, 1)
    torch.testing.assert_close(back.eval()(x), stage.eval()(x))


@pytest.mark.parametrize(
    ("depth", "variant", "hg_stages"),
    [(18, "dilation", (4,)), (34, "dcn", (4,)), (50, "dilation", (3, 4)), (50, "dcn", ()), (18, "dilation", ())],
)
def test_folded_network_is_the_network(depth, variant, hg_stages):
    net = randomise_norms(hg_resnet(depth, variant, hg_stages, 5, clusterer=SoftSLIC(16))).double().eval()
    folded = net.fold()
    assert not any("BatchNorm" in type(part).__name__ for part in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    x = torch.randn(2, 3, 65, 59, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x)["out"], net(x)["out"], **close)
    assert net.training is False and net.aux_head is not None  # the network itself is as it was


def test_deformable_network_starts_as_the_dilated_one():
    dilated = hg_resnet(18, "dilation", (), 3).eval()
    deformable = hg_resnet(18, "dcn", (), 3).eval()
    assert sum(isinstance(part, DeformConv2d) for part in deformable.modules()) == 4
    assert sum(isinstance(part, DeformConv2d) for part in hg_resnet(18, "dcn", (4,)).modules()) == 2
    dilated.load_state_dict({name: y for name, y in deformable.state_dict().items() if ".offset." not in name})
    x = torch.randn(1, 3, 64, 50)
    torch.testing.assert_close(deformable(x)["out"], dilated(x)["out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (70, 81)])
def test_any_size_channels_and_classes(size):
    net = hg_resnet(18, num_classes=1, in_channels=5, clusterer=SoftSLIC(16))
    x = torch.rand(2, 5, *size)
    out = net(x)
    assert {name: tuple(y.shape) for name, y in out.items()} == dict.fromkeys(("out", "aux"), (2, 1, *size))
    assert list(net.eval()(x)) == ["out"]
    assert list(hg_resnet(18, aux=False)(torch.rand(2, 3, 96, 96))) == ["out"]


def test_stage_4_can_be_left_out():
    dense = hg_resnet(18, hg_stages=(), num_classes=3)
    net = hg_resnet(18, hg_stages=(), num_classes=3, last_stage=3)
    assert net.trunk.channels == [64, 128, 256]
    shared = {name: value for name, value in dense.trunk.state_dict().items() if not name.startswith("stages.3.")}
    net.trunk.load_state_dict(shared)
    x = torch.randn(2, 3, 64, 80)
    torch.testing.assert_close(net.trunk.eval()(x)[0][2], dense.trunk.eval()(x)[0][2])
    assert {name: tuple(y.shape) for name, y in net.train()(x).items()} == dict.fromkeys(("out", "aux"), (2, 3, 64, 80))


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride(stride):
    net = hg_resnet(18, output_stride=stride, clusterer=SoftSLIC(4)).eval()
    found = net(torch.rand(1, 3, 128, 96), return_regions=True)["regions"][0]
    on_stage_3 = min(stride, 16)  # on regions stage 4 has no stride
    assert found.assignment.size == (128 // on_stage_3, 96 // on_stage_3)


@pytest.mark.parametrize(("form", "factor"), [(SoftSLIC.paper, 2), (SoftSLIC, 1.5)])  # density is of the root
def test_attention_moves_the_centres(form, factor):
    net = hg_resnet(18, num_classes=2, clusterer=form(8)).eval()
    x, attention = torch.randn(2, 3, 128, 128), torch.zeros(2, 128, 128)
    attention[:, 64:, 64:] = 1

    def share(found):
        seeds, (_, width) = found.assignment.seeds, found.assignment.size
        return ((seeds // width >= 8) & (seeds % width >= 8)).float().mean()

    plain = net(x, return_regions=True)["regions"][0]
    steered = net(x, attention, return_regions=True)["regions"][0]
    assert share(steered) > factor * share(plain)
    assert plain.name == "hg" and plain.graph.num_graphs == 2
    assert plain.assignment.grid == ((5, 6) if form is SoftSLIC else None) and steered.assignment.grid is None
    regions = 32 if plain.assignment.grid is None else 30  # of 256 / 8 what fills a grid
    assert plain.graph.num_nodes == 2 * plain.assignment.num_regions == 2 * regions
    assert steered.assignment.num_regions == 32


def test_batch_is_its_images():
    net = randomise_norms(hg_resnet(18, num_classes=4)).double().eval()
    x = torch.randn(3, 3, 72, 80, dtype=torch.float64)
    with torch.no_grad():
        one_by_one = torch.cat([net(image[None])["out"] for image in x])
        torch.testing.assert_close(net(x)["out"], one_by_one, **close)
        wide = torch.cat([x, torch.full_like(x, torch.nan)], 3)[..., :80]  # not contiguous, NaN around
        torch.testing.assert_close(net(wide)["out"], one_by_one, **close)
        last = x.to(memory_format=torch.channels_last)
        again = copy.deepcopy(net).to(memory_format=torch.channels_last)
        torch.testing.assert_close(again(last)["out"], one_by_one, **close)


@pytest.mark.parametrize("variant", ["dilation", "dcn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(variant, dtype):
    net = hg_resnet(18, variant, num_classes=3)
    for x in (torch.randn(2, 3, 96, 96), torch.full((2, 3, 96, 96), 0.7)):
        net.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            out = net(x)
        loss = sum(y.float().square().mean() for y in out.values())
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("folded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiles_into_one_graph(folded):
    net = hg_resnet(18, num_classes=3).eval()
    net = net.fold() if folded else net
    x = torch.randn(1, 3, 72, 80)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)["out"], net(x)["out"])


def test_exports():
    net = hg_resnet(18, num_classes=3).eval()
    x = torch.randn(1, 3, 72, 80)
    with torch.no_grad():
        program = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(program(x)["out"], net(x)["out"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, r"`depth` must be one of \(18, 34, 50, 101, 152\)"),
        ({"depth": "resnet7"}, "timm has no network 'resnet7'. Did you mean"),
        ({"depth": "vit_tiny_patch16_224"}, "no network with these stages"),
        ({"depth": "vgg11", "output_stride": 32}, "must be a ResNet of timm with four stages"),
        ({"depth": "resnet18", "stem": "deep"}, "`stem` must be None"),
        ({"stem": "7x7"}, "`stem` must be 'plain', 'deep' or None"),
        ({"variant": "dense"}, r"`variant` must be one of \('dilation', 'dcn'\)"),
        ({"hg_stages": (3,)}, "`hg_stages` must be one of"),
        ({"hg_stages": 4}, "`hg_stages` must be one of"),
        ({"last_stage": 3}, r"`last_stage` must be 4, or 3 with hg_stages=\(\), got 3 with hg_stages=\(4,\)"),
        ({"last_stage": 2, "hg_stages": ()}, "`last_stage` must be 4, or 3"),
        ({"output_stride": 4}, "`output_stride` must be 8, 16 or 32"),
        ({"num_classes": 0}, "`num_classes` must be a whole number >= 1"),
        ({"stem": "deep", "depth": 18, "pretrained": True}, "no pretrained weights for 'resnet18' with a deep stem"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        hg_resnet(**{"depth": 18, **arguments})


def test_wrong_images():
    net = hg_resnet(18, num_classes=3).eval()
    x = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"map that reaches the HG stage has 7 x 8 pixels.* and 64 in all .one region"):
        net(torch.rand(1, 3, 56, 64))
    with pytest.raises(ValueError, match="more than 1 along each side"):
        net(torch.rand(1, 3, 8, 640))
    with pytest.raises(ValueError, match="must have 3 channels"):
        net(torch.rand(1, 4, 64, 64))
    with pytest.raises(TypeError, match="`x` must be floating point"):
        net(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"`attention` must have the size of the map, \(1, 64, 64\)"):
        net(x, torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"`attention` must be in \[0, 1\]"):
        net(x, torch.full((1, 64, 64), 1.5))
    many = hg_resnet(18, clusterer=SoftSLIC(num_regions=65)).eval()
    with pytest.raises(ValueError, match=r"65 in all .one for each region"):
        many(x)
