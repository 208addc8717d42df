"""HG-Orientation: shapes, folding, and which stack steers which."""

import math

import pytest
import torch
from torch import nn

from hggraph import HGStage, SoftSLIC
from hggraph.models import hg_orientation
from hggraph.models._network import resize_attention
from hggraph.models.hg_resunet import focus
from tests.models.norms import randomise_norms


def small(**options):
    regions = {"clusterer": SoftSLIC(4)} if options.get("hg", True) else {"attention": None}
    return hg_orientation(**{"channels": 8, "depth": 1, "num_orientations": 5} | regions | options)


def log_clusterings(net):
    """Return a list that gets the attention, or None, of each call of a clusterer."""
    calls = []
    for part in (part for part in net.modules() if isinstance(part, SoftSLIC)):
        part.register_forward_pre_hook(lambda module, args: calls.append(args[1] if len(args) > 1 else None))
    return calls


shapes = [
    ((64, 80), {}),
    ((57, 70), {"num_classes": 1, "in_channels": 4, "attention": "uncertainty"}),
    ((57, 70), {"plus": True, "depth": 2, "branches": 1, "attention": None}),
    ((41, 67), {"depth": 2, "stacks": 1, "branches": 3}),
    ((41, 67), {"hg": False}),
    ((21, 35), {"hg": False, "plus": True, "num_orientations": 1, "channels": 1}),
]


@pytest.mark.parametrize(("size", "options"), shapes)
def test_shapes(size, options):
    net = small(**options)
    x = torch.rand(2, options.get("in_channels", 3), *size)
    stacks, branches = options.get("stacks", 2), options.get("branches", 2)
    out = net(x)
    assert out.keys() == {"out", "orientation"} | ({"aux", "aux_orientation"} if stacks == 2 else set())
    for name, y in out.items():
        classes = ("num_orientations", 5) if "orientation" in name else ("num_classes", 2)
        assert y.shape == (2, options.get(*classes), *size)
    out = net.eval()(x, return_regions=True)
    assert out.keys() == {"out", "orientation", "regions"} and out["orientation"].shape[2:] == size
    stride = (1 if options.get("plus") else 4) * 2 ** options.get("depth", 1)
    names = [f"stack {i + 1}, branch {j + 1}" for i in range(stacks) for j in range(branches)]
    assert [name for name, _, _ in out["regions"]] == (names if options.get("hg", True) else [])
    assert any(isinstance(part, HGStage) for part in net.modules()) == options.get("hg", True)
    for _, assignment, graph in out["regions"]:
        assert assignment.size == tuple(math.ceil(n / stride) for n in size) and graph.num_graphs == 2


@pytest.mark.parametrize("options", [{}, {"plus": True, "num_classes": 1, "attention": "uncertainty"}, {"hg": False}])
def test_fold(options):
    net = randomise_norms(small(**options)).double().eval()
    folded, x = net.fold(), torch.rand(1, 3, 57, 70, dtype=torch.float64)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in folded.modules())


def test_first_stack_steers_the_second():
    net, scores = small().eval(), []
    calls = log_clusterings(net)
    net.stacks[0].scores[0].register_forward_hook(lambda module, args, y: scores.append(y))
    net(torch.rand(1, 3, 64, 80))
    expected = resize_attention(focus(scores[0], "object", 1), (8, 10))
    assert len(calls) == 4 and calls[:2] == [None, None]  # each branch clusters once, and the decoders do not
    assert torch.equal(calls[2], expected) and torch.equal(calls[3], expected)
    net.attention = None
    net(torch.rand(1, 3, 64, 80))
    assert calls[4:] == [None] * 4


def test_given_attention_steers_every_stack():
    net, x, attention = small().eval(), torch.rand(1, 3, 64, 80), torch.zeros(1, 64, 80)
    attention[:, :24, :32] = 1
    inside = []
    for given in (None, attention):
        calls = log_clusterings(net)
        regions = net(x, attention=given, return_regions=True)["regions"]
        seeds = torch.stack([assignment.seeds[0] for _, assignment, _ in regions])
        assert all(assignment.size == (8, 10) for _, assignment, _ in regions)
        inside.append(((seeds // 10 < 3) & (seeds % 10 < 4)).sum(1))
    assert (inside[1] > inside[0]).all()
    assert all(torch.equal(call, resize_attention(attention, (8, 10))) for call in calls)


def test_three_stacks():
    net = small(stacks=3)
    calls = log_clusterings(net)
    tasks = {"out", "orientation"}
    assert net(torch.rand(2, 3, 40, 48)).keys() == tasks | {"aux", "aux_orientation", "aux_2", "aux_orientation_2"}
    assert [call is None for call in calls] == [True] * 2 + [False] * 4
    assert net.eval()(torch.rand(2, 3, 40, 48)).keys() == tasks


def untrained(net):
    sum(y.square().mean() for y in net(torch.rand(2, 3, 40, 48)).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    return [name for name, p in net.named_parameters() if p.grad is None]


@pytest.mark.parametrize("options", [{}, {"hg": False}, {"plus": True, "stacks": 1}])
def test_parameters_are_trained(options):
    assert untrained(small(**options)) == []


def test_branches_have_their_own_clusterers():
    clusterer = SoftSLIC(4, projection=nn.Conv2d(8, 3, 1))
    net = small(clusterer=clusterer)
    own = [branch.encoder.clusterer for stack in net.stacks for branch in stack.branches]
    assert len({id(part.projection.weight) for part in [clusterer, *own]}) == 5


def test_errors():
    for name in ("channels", "stacks", "branches", "depth", "num_orientations", "num_classes", "in_channels"):
        with pytest.raises(ValueError, match=f"`{name}` must be a whole number >= 1, got 0"):
            small(**{name: 0})
    net, x = small(), torch.rand(1, 3, 64, 80)
    for call, match in [
        (lambda: small(attention="road"), "`attention` must be one of"),
        (lambda: net(x[:, :2]), "`x` must have 3 channels, got shape"),
        (lambda: net(x, torch.rand(2, 64, 80)), r"must have the size of the map, \(1, 64, 80\)"),
        (lambda: net(x, -1 - x[:, 0]), r"`attention` must be in \[0, 1\]"),
        (lambda: net(x[..., :8]), "too small: the map that reaches the HG stage has 8 x 1 pixels"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
