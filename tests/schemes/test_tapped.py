"""Taps see what the modules give, train, and cost nothing at inference."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hggraph import SoftSLIC
from hggraph.models import hg_hrnet, hg_resnet
from hggraph.nn import CrossEntropy
from hggraph.schemes.hs3 import HS3Loss, tapped


def hg_net(**options):
    return hg_resnet(18, num_classes=5, aux=False, clusterer=SoftSLIC(4), **options)


def make(taps=None, tap_classes=None):
    torch.manual_seed(0)
    return tapped(hg_net(), taps or {"2": "trunk.stages.1", "hg": "trunk.hg"}, tap_classes)


def test_taps_see_what_the_modules_give():
    net, seen = make({"1": "trunk.stages.0", "hg": "trunk.hg", "last": "trunk.hg.blocks.1"}), {}
    for name in ("trunk.stages.0", "trunk.stages.2", "trunk.hg.blocks.1"):
        net.net.get_submodule(name).register_forward_hook(lambda _, i, out, name=name: seen.update({name: out}))
    inputs = {}
    for name, head in net.heads.items():
        head.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
    out = net.train()(torch.randn(2, 3, 64, 64))
    assert torch.equal(inputs["tap_1"], seen["trunk.stages.0"])
    assignment = out["tap_hg"].assignment
    pooled = assignment.pool(seen["trunk.stages.2"]).transpose(1, 2)
    torch.testing.assert_close(inputs["tap_hg"], pooled)
    assert torch.equal(inputs["tap_last"], seen["trunk.hg.blocks.1"].transpose(1, 2))
    assert out["tap_1"].shape == (2, 5, 64, 64) and out["tap_hg"].logits.shape == (2, 5, assignment.num_regions)


def test_branches_of_an_hrnet_are_put_side_by_side():
    net = tapped(
        hg_hrnet("w18_small_v2", hg=False, num_classes=4),
        {"2": "trunk.stage2", "3": "trunk.stage3"},
        {"2": 2, "3": 3},
    )
    assert [head[0].in_channels for head in net.heads.values()] == [54, 126]  # 3 c and 7 c
    out = net.train()(torch.randn(2, 3, 64, 64))
    assert [out[name].shape[1] for name in ("out", "tap_2", "tap_3")] == [4, 2, 3]


def test_no_cost_at_inference():
    """As many operations as the network alone, the same outputs; folded, no parameter more."""
    net, x = make(), torch.randn(1, 3, 64, 64)
    net.eval()
    counts = []
    for each in (net, net.net):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            out = each(x)
        counts.append(counter.get_total_flops())
        assert list(out) == ["out"]
    assert counts[0] == counts[1] > 0
    with torch.no_grad():
        assert torch.equal(net(x)["out"], net.net(x)["out"])
        torch.testing.assert_close(net.fold()(x)["out"], net(x)["out"], rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in net.fold().parameters()) == sum(p.numel() for p in net.net.fold().parameters())


def test_every_parameter_learns():
    net = make(tap_classes={"2": 2, "hg": 3}).train()
    loss = HS3Loss(CrossEntropy(), {"tap_2": [[0, 1, 2], [3, 4]], "tap_hg": [[0], [1, 2], [3, 4]]})
    target = torch.randint(5, (2, 64, 64))
    parts = loss(net(torch.randn(2, 3, 64, 64)), target)
    assert list(parts) == ["out", "tap_2", "tap_hg", "loss"]
    assert parts["loss"].item() == pytest.approx((parts["out"] + 0.4 * (parts["tap_2"] + parts["tap_hg"])).item())
    parts["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_tap_teaches_what_lies_before_it():
    net = make().train()
    HS3Loss(CrossEntropy())(net(torch.randn(2, 3, 64, 64)), torch.randint(5, (2, 64, 64)))["tap_2"].backward()
    taught = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.startswith("net.trunk.stages.1") for name in taught)
    assert not any(name.startswith(("net.trunk.stages.2", "net.trunk.hg", "net.head")) for name in taught)


def test_training_lowers_all_losses():
    torch.manual_seed(0)
    net, loss = make().train(), HS3Loss(CrossEntropy())
    x, target = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, :, 32:] = 3
    x[:, :, :, 32:] += 2
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    history = []
    for _ in range(6):
        optimizer.zero_grad()
        parts = loss(net(x), target)
        parts["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in parts.items()})
    assert all(history[-1][name] < 0.8 * history[0][name] for name in history[0])


@pytest.mark.slow
def test_compiles_and_exports():
    net, x = make().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = net(x)["out"]
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)["out"], want, rtol=1e-3, atol=1e-4)
        program = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(program(x)["out"], want, rtol=1e-3, atol=1e-4)


def test_hooks_do_not_stay():
    net = make().train()
    net(torch.randn(2, 3, 64, 64))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    with pytest.raises(ValueError, match="too small"):
        net(torch.randn(2, 3, 1, 1))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


@pytest.mark.parametrize(
    ("taps", "classes", "message"),
    [
        ({"2": "trunk.stage.1"}, None, r"got 'trunk.stage.1'; the nearest are \['trunk.stages.1'"),
        ({"2": "trunk.stages.1"}, {"3": 4}, r"`tap_classes` must name the taps \['2'\], got \['3'\]"),
        ({"2": "trunk.stages.1"}, {"2": 1}, "`tap_classes` must be a whole number >= 2, got 1"),
        ({"hg": "trunk.hg.clusterer"}, None, "must give regions"),
        ({}, None, "at least one module"),
    ],
)
def test_wrong_taps(taps, classes, message):
    with pytest.raises(ValueError, match=message):
        tapped(hg_net(), taps, classes)


def test_modules_without_maps_are_refused():
    with pytest.raises(TypeError, match=r"`net` must be a network of .*, got Conv2d"):
        tapped(nn.Conv2d(3, 3, 1), {"a": ""})
    net = hg_net()
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match=r"modules that the network runs, got \['spare'\]"):
        tapped(net, {"a": "spare"})
