"""HG-ResNets steered by unity: what draws the regions, what learns, and that one without steering is HG-ResNet."""

import pytest
import torch

from hggraph import SoftSLIC
from hggraph.models import hg_resnet, hg_unity
from hggraph.models.hg_unity import STEERS
from hggraph.nn import CrossEntropy
from hggraph.schemes.specialize import UnityOutputLoss, unity_attention, unity_regions


def make(steer, **options):
    torch.manual_seed(0)
    return hg_unity(18, 4, steer=steer, levels=3, clusterer=SoftSLIC(4), **options)


def test_without_steering_it_is_hg_resnet():
    net, plain = make("importance").eval(), hg_resnet(18, num_classes=4, clusterer=SoftSLIC(4)).eval()
    missing = plain.load_state_dict({k: v for k, v in net.state_dict().items() if "unity" not in k})
    assert not missing.missing_keys
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(net(x)["out"], plain(x)["out"])


def test_attention_is_what_unity_says():
    """The same as giving the attention map by hand, which takes its place."""
    net, plain, x = make("attention").eval(), make("importance").eval(), torch.randn(1, 3, 64, 96)
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        unity = [u.sigmoid() for u in net.unity_head(net.trunk.on_pixels(x)[-1])]
        by_hand = plain(x, attention=unity_attention(unity, (64, 96)))["out"]
        assert torch.equal(net(x)["out"], by_hand)
        given = torch.rand(1, 64, 96)
        assert torch.equal(net(x, attention=given)["out"], plain(x, attention=given)["out"])


def test_cells_are_the_regions():
    net, x = make("regions", threshold=0.5).eval(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        unity = [u.sigmoid() for u in net.unity_head(net.trunk.on_pixels(x)[-1])]
        found = net(x, return_regions=True)["regions"][0].assignment
    cells = unity_regions(unity[:-1], 0.5)
    assert torch.equal(found.labels[:, ::2, ::2], cells.labels) and found.num_regions == cells.num_regions
    assert torch.equal(found.labels[:, 1::2, 1::2], cells.labels)


@pytest.mark.parametrize("steer", STEERS)
def test_everything_learns(steer):
    net, loss = make(steer).train(), UnityOutputLoss(CrossEntropy(), stride=16)
    x, target = torch.randn(2, 3, 60, 64), torch.zeros(2, 60, 64, dtype=torch.long)
    target[:, :, 24:] = 2
    x[:, :, :, 24:] += 2
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    history = []
    for _ in range(5):
        optimizer.zero_grad()
        out = net(x)
        assert [tuple(u.shape) for u in out["unity"]] == [(2, 2, 2), (2, 4, 4)]
        parts = loss(out, target)
        parts["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        history.append(parts["loss"].item())
    assert history[-1] < 0.8 * history[0] and set(parts) == {"out", "aux", "unity", "loss"}


@pytest.mark.slow
@pytest.mark.parametrize("steer", STEERS)
def test_folds_compiles_and_exports(steer):
    net, x = make(steer).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = net(x)["out"]
        torch.testing.assert_close(net.fold()(x)["out"], want, rtol=1e-3, atol=1e-4)
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)["out"], want, rtol=1e-3, atol=1e-4)
        program = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(program(x)["out"], want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steer": "unity"}, r"`steer` must be one of \('importance', 'attention', 'regions'\), got 'unity'"),
        ({"levels": 2}, "`levels` must be a whole number >= 3, got 2"),
        ({"threshold": -1}, r"`threshold` must be in \[0, 1\]"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        hg_unity(18, 4, **options)
