"""HG-ResUNet: shapes, folding, one assignment for encoder and decoder, active focus."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hggraph import HGStage, SoftSLIC
from hggraph.models import fold_batch_norm, hg_resunet
from hggraph.models._network import resize_attention
from hggraph.models.hg_resunet import focus
from tests.models.norms import randomise_norms


def count_in_corner(out):
    (regions,) = out["regions"]
    assert regions.assignment.size == (8, 10)
    return int(((regions.assignment.seeds // 10 < 3) & (regions.assignment.seeds % 10 < 4)).sum())


def log_clusterings(net):
    """Return a list that gets the arguments of each call of a clusterer."""
    calls = []
    for part in (part for part in net.modules() if isinstance(part, SoftSLIC)):
        part.register_forward_pre_hook(lambda module, args: calls.append(args))
    return calls


shapes = [
    ((64, 80), {"num_classes": 3, "aux": True}),
    ((57, 70), {"attention": "object"}),
    ((49, 51), {"plus": True, "attention": "uncertainty", "num_classes": 2, "in_channels": 4}),
    ((33, 35), {"hg": False, "plus": True, "aux": True}),
]


@pytest.mark.parametrize(("size", "options"), shapes)
def test_shapes(size, options):
    net = hg_resunet(18, **options)
    x = torch.rand(2, options.get("in_channels", 3), *size)
    out = net(x)
    assert out.keys() == ({"out", "aux"} if "aux" in options or "attention" in options else {"out"})
    assert all(y.shape == (2, options.get("num_classes", 1), *size) for y in out.values())
    grads = torch.autograd.grad(sum(y.square().mean() for y in out.values()), list(net.parameters()))
    assert all(grad.isfinite().all() for grad in grads)
    out = net.eval()(x, return_regions=True)
    assert out.keys() == {"out", "regions"} and out["out"].shape == (2, options.get("num_classes", 1), *size)
    assert len(out["regions"]) == any(isinstance(part, HGStage) for part in net.modules()) == options.get("hg", True)
    for name, assignment, graph in out["regions"]:
        assert name == "hg" and assignment.batch_size == graph.num_graphs == 2
        assert assignment.size == tuple(math.ceil(n / 8) for n in size)  # by strides with plus, else by dilation


@pytest.mark.parametrize("options", [{"aux": True}, {"depth": 50, "plus": True, "attention": "object"}, {"hg": False}])
def test_fold(options):
    net = randomise_norms(hg_resunet(num_classes=2, **options)).double().eval()
    folded, x = net.fold(), torch.rand(1, 3, 49, 70, dtype=torch.float64)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in folded.modules())
    assert (folded.coarse_head is None) == ("attention" not in options)  # where it steers it stays


def test_one_region_per_pixel_is_the_dense_network():
    net = randomise_norms(hg_resunet(clusterer=SoftSLIC(num_regions=80, feature_scale=1e3))).double().eval()
    x = torch.rand(1, 3, 64, 80, dtype=torch.float64)
    for stage in (net.encoder_last, net.decoder_first):
        regions_alone = torch.eye(stage.fuse.in_channels)[-stage.fuse.out_channels :]
        stage.fuse.weight.data = regions_alone.double()[..., None, None]
    out = net(x)
    net.encoder_last, net.decoder_first = net.encoder_last.to_stage(), net.decoder_first.to_stage()
    torch.testing.assert_close(out, net(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("plus", [False, True])
def test_given_attention_steers(plus):
    net = hg_resunet(plus=plus, clusterer=SoftSLIC(4)).eval()
    x, attention = torch.rand(1, 3, 64, 80), torch.ones(1, 24, 32)
    steered = count_in_corner(net(x, attention=F.pad(attention, (0, 48, 0, 40)), return_regions=True))
    assert steered > count_in_corner(net(x, return_regions=True))


def test_coarse_prediction_steers_unless_attention_is_given():
    net, x = hg_resunet(attention="object", num_classes=2).eval(), torch.rand(1, 3, 64, 80)
    nn.init.zeros_(net.coarse_head[-1].weight)
    net.coarse_head[-1].bias.data = torch.tensor([0.0, math.log(3)])
    calls = log_clusterings(net)
    even = count_in_corner(net(x, return_regions=True))
    torch.testing.assert_close(calls[-1][1], torch.full((1, 8, 10), 0.75))
    corner = F.pad(torch.ones(1, 3, 4), (0, 6, 0, 5))
    net.coarse_head = nn.Identity()
    net.coarse_head.forward = lambda x: 100 * torch.stack([1 - corner, corner], 1)
    crowded = count_in_corner(net(x, return_regions=True))
    assert crowded > even
    torch.testing.assert_close(calls[-1][1], corner)
    net.attention_class = 0
    assert count_in_corner(net(x, return_regions=True)) < crowded
    attention = F.pad(torch.full((1, 24, 40), 0.5), (40, 0, 40, 0))
    for training in (True, False):
        elsewhere = net.train(training)(x, attention, return_regions=True)
        assert count_in_corner(elsewhere) < crowded and torch.equal(calls[-1][1], resize_attention(attention, (8, 10)))
    net.coarse_head = None  # is not asked
    torch.testing.assert_close(net(x, attention)["out"], elsewhere["out"])


def test_decoder_reuses_the_assignment():
    net = hg_resunet(attention="object")
    calls, used = log_clusterings(net), []
    for stage in (net.encoder_last, net.decoder_first):
        stage.register_forward_pre_hook(lambda _, args, kwargs: used.append(kwargs["assignment"]), with_kwargs=True)
    (regions,) = net(torch.rand(2, 3, 64, 80), return_regions=True)["regions"]
    assert len(calls) == 1 and len(used) == 2 and all(s is regions.assignment for s in used)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_focus_is_the_formula(classes):
    logits = 3 * torch.randn(2, classes, 5, 4, requires_grad=True)
    z = logits.detach() if classes > 1 else torch.cat([torch.zeros(2, 1, 5, 4), logits.detach()], 1)
    prob = z.exp() / z.exp().sum(1, keepdim=True)
    for index in range(classes):
        torch.testing.assert_close(focus(logits, "object", index), prob[:, index - classes])
    actual = focus(logits, "uncertainty", 0)
    torch.testing.assert_close(actual, -(prob * prob.log()).sum(1) / math.log(max(classes, 2)), rtol=1e-4, atol=1e-6)
    assert not actual.requires_grad and focus(logits, None, 0) is None


def test_errors():
    net, x = hg_resunet(), torch.rand(1, 3, 64, 80)
    for call, match in [
        (lambda: hg_resunet(20), "`depth` must be one of"),
        (lambda: hg_resunet(attention="road"), "`attention` must be one of"),
        (lambda: hg_resunet(attention="object", hg=False), "with hg=False it must be None, got 'object'"),
        (lambda: hg_resunet(attention_class=1), r"`attention_class` must be a class in \[0, 1\), got 1"),
        (lambda: net(x[0]), r"`x` must have shape \(B, 3, H, W\)"),
        (lambda: net.eval()(x[:, :, :8]), "too small: the map .* has 1 x 10 pixels, and must have more than 1 along"),
        (lambda: hg_resunet(clusterer=SoftSLIC(81))(x), r"81 in all \(one region\).*SoftSLIC\(downsample=4\)"),
        (lambda: hg_resunet(clusterer=SoftSLIC(num_regions=81))(x), r"81 in all \(one for each region\)"),
        (lambda: fold_batch_norm(net.train()), "`module` must be in eval mode"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
