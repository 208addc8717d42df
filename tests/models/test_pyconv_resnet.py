"""PyConvResNet: published counts, the published layout of weights, and its forward pass written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hggraph.models import count, fold_batch_norm, pyconv_hg_resnet, pyconv_resnet
from hggraph.models.pyconv_resnet import BLOCKS, KERNELS, from_official
from tests.models.norms import randomise_norms


def on_meta(make, *args, **options):
    with torch.device("meta"):
        return make(*args, **options)


@pytest.mark.parametrize(
    ("make", "depth", "parameters", "published"),
    [
        (pyconv_resnet, 50, "24.85", 3.88),
        (pyconv_resnet, 101, "42.31", 7.31),
        (pyconv_resnet, 152, "56.64", 10.72),
        (pyconv_hg_resnet, 50, "25.23", 4.61),
        (pyconv_hg_resnet, 101, "44.63", 8.42),
        (pyconv_hg_resnet, 152, "60.66", 12.29),
    ],
)
def test_published_counts(make, depth, parameters, published):
    """PyConv Table 3: parameters, and multiply-adds at 224 x 224, which there include what is not counted here."""
    total = count(on_meta(make, depth), (224, 224))[-1]
    assert f"{total.parameters / 1e6:.2f}" == parameters
    assert 0.98 * published <= total.macs / 1e9 <= published


@pytest.mark.parametrize(
    ("depth", "twice", "parameters"),
    [(18, False, "5.91"), (34, False, "11.09"), (18, True, "11.21"), (34, True, "20.44")],
)
def test_counts_of_the_published_code(depth, twice, parameters):
    net = on_meta(pyconv_resnet, depth, twice=twice)
    assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f}" == parameters


def official(net):
    """Return a network's weights under the names of the published code."""
    state = {}
    for name, value in net.state_dict().items():
        if ".conv2.levels." in name:
            block, _, level = name.removesuffix(".weight").rpartition(".levels.")
            alone = name.replace(".levels.0.", ".levels.1.") not in net.state_dict()
            name = f"{block}.weight" if alone else f"{block}.conv2_{int(level) + 1}.weight"
        state[name] = value
    return state


def literal(state, x, depth, groups):
    """Return logits as the published code computes them from its own weights."""

    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1").relu()
    for stage in range(4):
        for number in range(BLOCKS[depth][stage]):
            at, stride = f"layer{stage + 1}.{number}", 2 if number == 0 else 1
            identity = x
            if number == 0:
                pooled = F.max_pool2d(x, 3, 2, 1)
                identity = norm(F.conv2d(pooled, state[f"{at}.downsample.1.weight"]), f"{at}.downsample.2")
            y = norm(F.conv2d(x, state[f"{at}.conv1.weight"]), f"{at}.bn1").relu()
            levels = []
            for i, (kernel, g) in enumerate(zip(KERNELS[stage], groups[stage], strict=True), start=1):
                name = f"{at}.conv2.weight" if len(KERNELS[stage]) == 1 else f"{at}.conv2.conv2_{i}.weight"
                levels.append(F.conv2d(y, state[name], stride=stride, padding=kernel // 2, groups=g))
            y = norm(torch.cat(levels, 1), f"{at}.bn2").relu()
            x = (norm(F.conv2d(y, state[f"{at}.conv3.weight"]), f"{at}.bn3") + identity).relu()
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(
    ("make", "groups"),
    [
        (pyconv_resnet, ((1, 4, 8, 16), (1, 4, 8), (1, 4), (1,))),
        (pyconv_hg_resnet, ((32, 32, 32, 32), (32, 64, 64), (32, 64), (32,))),
    ],
)
def test_published_weights_and_forward_pass(make, groups, tmp_path):
    net = randomise_norms(make(50, 7)).eval()
    state = official(net)
    assert {"layer1.0.conv2.conv2_4.weight", "layer3.1.conv2.conv2_2.weight", "layer4.0.conv2.weight"} <= state.keys()
    renamed = from_official(state)
    assert renamed.keys() == net.state_dict().keys()
    x = torch.randn(2, 3, 60, 70)
    with torch.no_grad():
        want = literal(state, x, 50, groups)
        torch.testing.assert_close(net(x), want, rtol=1e-4, atol=1e-4)
        torch.save(state, tmp_path / "published.pth")
        torch.testing.assert_close(make(50, 7, pretrained=tmp_path / "published.pth").eval()(x), net(x))
    with pytest.raises(ValueError, match="are not those of PyConvResNet"):
        make(50, 8, pretrained=tmp_path / "published.pth")


@pytest.mark.parametrize(("stride", "dilations"), [(32, [1, 1, 1, 1]), (16, [1, 1, 1, 2]), (8, [1, 1, 2, 4])])
def test_output_stride(stride, dilations):
    """Of all blocks of a stage and all their levels; the shortcut still pools."""
    net = pyconv_resnet(18, output_stride=stride).eval()
    maps = net.forward_features(torch.rand(1, 3, 64, 96))
    assert [64 // y.shape[2] for y in maps] == [min(stride, 2**i) for i in range(2, 6)]
    stages = (net.layer1, net.layer2, net.layer3, net.layer4)
    for stage, dilation in zip(stages, dilations, strict=True):
        assert {block.conv1.dilation for block in stage} == {(dilation, dilation)}
    assert isinstance(net.layer4[0].downsample[0], nn.MaxPool2d)
    assert net.layer4[0].downsample[0].stride == (2 if stride == 32 else 1)


@pytest.mark.parametrize("make", [pyconv_resnet, pytest.param(pyconv_hg_resnet, marks=pytest.mark.slow)])
def test_trains_compiles_and_exports(make):
    net = make(18, 4, zero_init=True)
    x, target = torch.randn(4, 3, 48, 48), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    net.eval()
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
        program = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(program(x), net(x), rtol=1e-4, atol=1e-5)


def test_folds():
    """Level by level; nothing is left of the normalisations."""
    net = randomise_norms(pyconv_resnet(18, 4, twice=True)).double().eval()
    x = torch.randn(2, 3, 48, 56, dtype=torch.float64)
    with torch.no_grad():
        want = net(x)
        fold_batch_norm(net)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in net.modules())
        torch.testing.assert_close(net(x), want, rtol=1e-9, atol=1e-9)


def test_blocks_start_as_identities():
    net = pyconv_resnet(50, 4, zero_init=True)
    assert not any(block.bn3.weight.any() for block in net.layer2)
    assert all(block.bn3.weight.all() for block in pyconv_resnet(50, 4).layer2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, r"`depth` must be one of \(18, 34, 50, 101, 152\), got 20"),
        ({"output_stride": 4}, "`output_stride` must be 8, 16 or 32, got 4"),
        ({"num_classes": 0}, "`num_classes` must be a whole number >= 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        on_meta(pyconv_resnet, **({"depth": 18} | arguments))


def test_wrong_images():
    net = pyconv_resnet(18, 2).eval()
    with pytest.raises(ValueError, match=r"`x` must have shape \(B, 3, H, W\)"):
        net(torch.rand(3, 64, 64))
    with pytest.raises(TypeError, match="floating point"):
        net(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        pyconv_resnet(18, pretrained="nothing.pth")
