"""A stride is a partition: any CNN on regions, held against the strided CNN that it came from."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

import hggraph
from hggraph import Assignment, HGConv, HGStage, SoftSLIC, Stencil
from hggraph.cluster import Cells, Superpixels, Voronoi
from hggraph.graph.directions import directed
from hggraph.models import convert
from hggraph.nn import RegionLevel
from hggraph.nn.region_conv import RegionConv2d

close = {"rtol": 1e-10, "atol": 1e-10}

FAMILIES = [
    "mobilenetv2_100",
    "resnet50",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "convnext_atto",
    "regnety_002",
    "densenet121",
    "vgg11_bn",
    "resnext26ts",
    "seresnet18",
    "dla34",
    "mnasnet_small",
    "ghostnet_100",
    "repvgg_a0",
    "nfnet_l0",
    "resnetv2_50",
    "cspresnet50",
    "mobileone_s0",
    "rexnet_100",
]
NAMES = [*FAMILIES[:6], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[6:])]


def features():
    return torchvision.models.mobilenet_v2().features


def as_strided(net, **options):
    """Return the network on the cells of its strides."""
    return convert(net, clusterer=Cells(), pooling="sample", **options)


def scrambled(net):
    """Give normalisations statistics and shifts as training does, in float64 and eval mode."""
    torch.manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.uniform_(0.5, 2)
            part.running_mean.normal_()
            nn.init.normal_(part.bias)
    return net.double().eval()


def repeated(x, size):
    """Return each value of a map over the cell that it stands for."""
    return x.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., : size[0], : size[1]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cells_are_the_strides(name, layout):
    """Logits and gradients of the whole network; global means and squeeze-and-excitation count each node once."""
    net = scrambled(timm.create_model(name, num_classes=5))
    before = copy.deepcopy(net.state_dict())
    on_cells = as_strided(net)
    assert net.state_dict().keys() == before.keys() == on_cells.state_dict().keys()
    assert type(on_cells) is type(net) and not any(part._forward_hooks for part in net.modules())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    ours, theirs = on_cells(x), net(x)
    torch.testing.assert_close(ours, theirs, **close)
    cotangent = torch.randn_like(theirs)
    wanted = [x, *(p for p in net.parameters() if p.requires_grad)]
    taken = [x, *(p for p in on_cells.parameters() if p.requires_grad)]
    expected = torch.autograd.grad(theirs, wanted, cotangent, allow_unused=True)
    for a, b in zip(torch.autograd.grad(ours, taken, cotangent, allow_unused=True), expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (75, 8), (9, 200), (41, 40)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_come_back_over_their_cells(size, layout):
    """Of any size, one pixel wide too, where cells do not divide the map; outputs and gradients."""
    net = scrambled(features())
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    ours, fine = as_strided(net)(x), net[:7](x).shape[2:]
    theirs = repeated(net(x), fine)
    torch.testing.assert_close(ours, theirs, **close)
    cotangent = torch.randn_like(theirs)
    (a,), (b,) = torch.autograd.grad(ours, x, cotangent), torch.autograd.grad(theirs, x, cotangent)
    torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("name", ["resnet50d", "tf_efficientnet_lite0", "resnetblur18", "resnet26t"])
def test_lists_of_maps_come_back(name):
    """Average pooling that counts what is inside, padding by size, blurring: where each stands in its cell."""
    net = scrambled(timm.create_model(name, features_only=True))
    x = torch.randn(1, 3, 75, 101, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = as_strided(net)(x), net(x)
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(ours[4], repeated(theirs[4], ours[2].shape[2:]), **close)


@pytest.mark.parametrize("size", [(10, 1), (9, 12)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_in_both_layouts_one_pixel_wide(size, layout):
    """Normalisation by the batch over nodes: the strided blocks' gradients, in rows of pixels for the reference.

    Two blocks: through many normalisations of a few values each the last bit of float64 grows to the first.
    """
    torch.manual_seed(0)
    blocks = features()[7:9].double()
    stage = HGStage.from_stage(blocks, Cells(), steps=True, pooling="sample").to(memory_format=layout)
    x = torch.randn(6, 32, *size, dtype=torch.float64)
    theirs = blocks.train()(x).repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : size[0], : size[1]]
    ours = stage.train()(x.to(memory_format=layout))
    torch.testing.assert_close(ours, theirs, **close)
    cotangent = torch.randn_like(theirs)
    ours.backward(cotangent)
    theirs.backward(cotangent)
    for a, b in zip(stage.parameters(), blocks.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9)


def learned(channels):
    return SoftSLIC(4, iterations=1, projection=nn.Conv2d(channels, 8, 1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": "borders"},
        {"directions": "geometry"},
        {"directions": "alone"},
        {"directions": "shuffled"},
        {"nested": False},
        {"back": "nearest"},
        {"back": "bilinear"},
        {"pooling": "sample"},
        {"steps": False, "clusterer": SoftSLIC(64)},
        {"steps": False, "clusterer": SoftSLIC.paper(64), "directions": "borders"},
        {"clusterer": SoftSLIC.paper(4), "nested": False, "directions": "borders"},
        {"clusterer": Voronoi(4), "nested": False, "directions": "geometry"},
        {"clusterer": SoftSLIC(4, sampling="warp")},
        {"clusterer": [learned(32), learned(96)]},
        {
            "clusterer": Superpixels(lambda image, number: (image[..., 0] > 0.5).astype(int), 4),
            "nested": False,
            "directions": "geometry",
        },
    ],
    ids=str,
)
def test_every_form_trains(options):
    torch.manual_seed(0)
    net = convert(features(), **options).train()
    out = net(torch.rand(2, 3, 64, 72))
    assert out.shape == (2, 1280, 8, 9)
    out.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    used = [name for name, p in net.named_parameters() if p.grad is None]
    assert not used


@pytest.mark.parametrize("clusterer", [SoftSLIC(4), SoftSLIC(4, sampling="warp"), Cells()])
def test_birth_geometry_and_borders_are_hgconv(clusterer):
    """A layer of each form is HGConv, message by message, on the typed edges of its level."""
    torch.manual_seed(0)
    for directions in ("birth", "geometry", "borders", "alone", "shuffled"):
        conv = nn.Conv2d(6, 8, 3, padding=1, groups=2).double()
        level = RegionLevel(clusterer, directions=directions)
        level.enter(torch.rand(2, 4, 12, 14, dtype=torch.float64))
        z = torch.randn(2, 6, *level.shape, dtype=torch.float64)
        stencil = Stencil.square(3)
        index, types, weight = level.adjacency(stencil).to_edges()
        rows = z.flatten(2).mT.flatten(0, 1)
        expected = HGConv.from_conv(conv)(rows, index, types, weight).unflatten(0, (2, -1)).mT.unflatten(2, level.shape)
        actual = conv(z) if directions == "birth" else RegionConv2d.of(conv, level)(z)
        torch.testing.assert_close(actual, expected, **close)


def test_means_count_nodes_by_their_area():
    """A network of a stride, a global mean and a linear layer: the mean over the pixels of the first map."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stride = nn.Conv2d(3, 4, 1, stride=2, bias=False)
            self.pool, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.pool(self.stride(x)).flatten(1))

    net = Net().double()
    x = torch.randn(2, 3, 11, 14, dtype=torch.float64)
    expected = net.last(nn.functional.conv2d(x, net.stride.weight).mean((2, 3)))
    for clusterer in (SoftSLIC(4), Cells()):
        torch.testing.assert_close(convert(net, from_stride=1, clusterer=clusterer)(x), expected, **close)
    assert (as_strided(net, from_stride=1)(x) - net(x)).abs().max() < 1e-12
    assert (net(x) - expected).abs().max() > 1e-3


def test_squeeze_and_excitation_by_area():
    """Its gate is that of the map by area, whichever library's module it is."""
    for net, se in (
        (timm.create_model("efficientnet_b0", features_only=True), "blocks.3.1.se"),
        (torchvision.models.efficientnet_b0().features, "4.1.block.2"),
    ):
        on_regions = convert(net.eval(), clusterer=SoftSLIC(4))
        seen = {}
        block = on_regions.get_submodule(se)
        block.register_forward_hook(lambda module, args, out, seen=seen: seen.update(x=args[0], out=out))
        with torch.no_grad():
            on_regions(torch.rand(2, 3, 96, 120))
            level, x = on_regions.region_levels[0], seen["x"]
            area = (level.area / level.area.sum(1, keepdim=True)).float()
            mean = (x.flatten(2) * area[:, None]).sum(2)[:, :, None, None]
            alone = copy.deepcopy(net.get_submodule(se))
            torch.testing.assert_close(seen["out"], x * (alone(mean) / mean), rtol=1e-4, atol=1e-5)


def test_regions_and_attention_of_a_pass():
    torch.manual_seed(0)
    net = convert(features(), clusterer=[SoftSLIC(4, sampling="warp"), SoftSLIC(4)]).eval()
    photo = torch.rand(1, 3, 96, 128)
    first, second = net.region_levels
    plain = net(photo)
    assert first.regions.size == (12, 16) and first.regions.grid == second.regions.size
    attention = torch.zeros(1, 96, 128)
    attention[..., :40, :40] = 1
    before = first.regions.seeds
    net.region_levels.attention = attention
    assert not torch.equal(net(photo), plain)
    inside = [((seeds // 16 < 5) & (seeds % 16 < 5)).sum() for seeds in (before, first.regions.seeds)]
    assert inside[1] > inside[0]
    whole = first.regions.compose(second.regions)
    assert isinstance(whole, Assignment) and whole.num_regions == second.regions.num_regions


def test_batch_is_its_images():
    net = convert(scrambled(features()))
    x = torch.rand(3, 3, 64, 72, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), torch.cat([net(image[None]) for image in x]), **close)


def test_copies_saves_and_compiles(tmp_path):
    net = convert(features()).eval()
    x = torch.rand(1, 3, 64, 72)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(copy.deepcopy(net)(x), expected)
        torch.save(net, tmp_path / "net.pt")
        assert torch.equal(torch.load(tmp_path / "net.pt", weights_only=False)(x), expected)
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    torch.manual_seed(0)
    net = convert(features()).train()
    with torch.autocast("cpu", dtype=dtype):
        out = net(torch.rand(2, 3, 64, 72))
    out.float().square().mean().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (features, {"from_stride": 64}, "no stride beyond `from_stride` = 64; its maps have strides"),
        (features, {"from_stride": 0}, "`from_stride` must be a whole number >= 1"),
        (features, {"pooling": "max"}, "`pooling` must be one of"),
        (features, {"directions": "up"}, "`directions` must be one of"),
        (features, {"back": "cubic"}, "`back` must be one of"),
        (features, {"clusterer": [Cells()]}, "`clusterer` must be one, or 2 for strides"),
        (lambda: timm.create_model("hrnet_w18_small"), {}, "upsamples inside"),
        (lambda: timm.create_model("resnet18", output_stride=8), {}, "no stride beyond"),
        (lambda: nn.Linear(3, 3), {}, "must have convolutions"),
        (lambda: timm.create_model("nfnet_l0"), {"directions": "borders"}, "is no plain convolution"),
        (lambda: timm.create_model("vit_tiny_patch16_224"), {}, "does not run on an image of 3 channels"),
    ],
)
def test_refusals(make, options, message):
    with pytest.raises(ValueError, match=message):
        convert(make(), **options)


def test_a_clusterer_must_be_a_module():
    for clusterer in (4, [Cells(), 4]):
        with pytest.raises(TypeError, match="`clusterer` must be a module or a sequence of modules"):
            convert(features(), clusterer=clusterer)


def test_regions_that_do_not_fit():
    net = convert(features(), clusterer=SoftSLIC.paper(4), nested=False)
    with pytest.raises(ValueError, match="needs regions born on a grid"):
        net(torch.rand(1, 3, 64, 64))
    net = convert(features(), clusterer=SoftSLIC(num_regions=50))
    with pytest.raises(ValueError, match="`num_regions` must be at most the number of pixels, 4 x 4"):
        net(torch.rand(1, 3, 32, 32))
    with pytest.raises(RuntimeError, match="no regions yet"):
        convert(features()).region_levels[0].pool(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match="needs regions born on a grid"):
        directed(Assignment.from_labels(torch.zeros(1, 2, 2, dtype=torch.long)), "birth")


def test_public_name():
    assert hggraph.convert is convert
