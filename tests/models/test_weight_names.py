"""Weights by other names: torchvision's and lukemelas' files, and timm's networks of features alone."""

from copy import deepcopy

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from hggraph.models.weight_names import feature_sources, to_timm
from hggraph.models.weights import create_backbone

FAMILIES = [
    "resnet18",  # names as they are
    "mobilenetv2_100",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_100",
    "regnety_002",
    "hrnet_w18_small",
    "convnext_atto",  # stages.0 is stages_0
    "densenet121",
    pytest.param("vgg11_bn", marks=pytest.mark.slow),  # half a gigabyte
    "vit_tiny_patch16_224",  # under model.
    "xception41",  # hooks
]


def randomised(model):
    """Weights and statistics that no two networks share and every map depends on."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.1 * noise if value.ndim == 1 and "weight" in name else value + 0.02 * noise)
    return model.eval()


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    net = randomised(torchvision.models.mobilenet_v2(weights=None))
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(net.state_dict(), path)
    return net, path


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@torch.no_grad()
def test_mobilenet_of_torchvision(mobilenet, dtype, tolerance):
    net, path = mobilenet
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    net = deepcopy(net).to(dtype)
    got = create_backbone("mobilenetv2_100", pretrained=path).eval().to(dtype)
    torch.testing.assert_close(got.forward_features(x), net.features(x), atol=tolerance, rtol=tolerance)

    whole = timm.create_model("mobilenetv2_100").eval().to(dtype)
    whole.load_state_dict(to_timm(net.state_dict(), whole.state_dict().keys()))
    torch.testing.assert_close(whole(x), net(x), atol=tolerance, rtol=tolerance)


def test_mobilenet_with_other_channels_and_width(mobilenet, tmp_path):
    net, path = mobilenet
    got = create_backbone("mobilenetv2_100", pretrained=path, in_channels=1)
    torch.testing.assert_close(got.conv_stem.weight, net.features[0][0].weight.sum(1, keepdim=True))
    with pytest.raises(ValueError, match=r"not those of mobilenetv2_140 \(\d+ of another shape: .*Nothing was loaded"):
        create_backbone("mobilenetv2_140", pretrained=path)
    with pytest.raises(ValueError, match=r"not those of mobilenetv2_120d \(\d+ missing: .*\d+ of another shape"):
        create_backbone("mobilenetv2_120d", pretrained=path)
    with pytest.raises(
        ValueError, match=r"not those of vgg11_bn \(\d+ missing: features.0.*not expected: .*features.0.0"
    ):
        create_backbone("vgg11_bn", pretrained=path)


def in_lukemelas_names(state):
    """EfficientNet-Lite of timm as the other program writes it, block by block, each part counted through."""
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    renamed, blocks = {}, []
    for name, value in state.items():
        if not name.startswith("blocks."):
            part, _, kind = name.rpartition(".")
            renamed[f"{outer[part]}.{kind}"] = value
            continue
        _, stage, block, part, kind = name.split(".")
        if (stage, block) not in blocks:
            blocks.append((stage, block))
        if stage == "0":
            to = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}[part]
        elif part.startswith("bn"):
            to = f"_bn{int(part[2]) - 1}"
        else:
            to = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}[part]
        renamed[f"_blocks.{blocks.index((stage, block))}.{to}.{kind}"] = value
    return renamed


@pytest.mark.parametrize("size", [0, 1, 2])
def test_efficientnet_lite_of_lukemelas(size, tmp_path):
    net = randomised(timm.create_model(f"tf_efficientnet_lite{size}"))
    want = net.state_dict()
    file = in_lukemelas_names(want)
    # Read off the published files.
    assert file["_blocks.0._project_conv.weight"].shape == (16, 32, 1, 1)
    assert file["_blocks.1._expand_conv.weight"].shape == (96, 16, 1, 1)
    last, channels = ((15, 1152), (20, 1152), (20, 1248))[size]
    assert file[f"_blocks.{last}._depthwise_conv.weight"].shape == (channels, 1, 3, 3)
    assert len(file) == (296, 386, 386)[size]
    got = to_timm(file, want.keys())
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)

    torch.save(file, tmp_path / "lite.pth")
    trunk = create_backbone(net.pretrained_cfg["architecture"], pretrained=tmp_path / "lite.pth").state_dict()
    assert all(torch.equal(trunk[name], want[name]) for name in want if not name.startswith("classifier."))
    with pytest.raises(ValueError, match=r"not those of tf_efficientnet_lite[013] \(.*Nothing was loaded"):
        create_backbone(f"tf_efficientnet_lite{(1, 0, 3)[size]}", pretrained=tmp_path / "lite.pth")


def test_unknown_layouts_stay():
    state = {"features.0.weight": torch.zeros(1)}
    assert to_timm(state, ["features.0.weight"]) is state
    assert to_timm(state, ["conv_stem.weight", "blocks.0.0.conv_dw.weight"]) is state
    mobilenet = torchvision.models.mobilenet_v2(weights=None).state_dict()
    assert to_timm(mobilenet, timm.create_model("resnet18").state_dict()) is mobilenet


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_of_torchvision(depth, tmp_path):
    net = randomised(getattr(torchvision.models, f"resnet{depth}")(weights=None))
    # As the oldest files are, without the number of batches.
    state = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet.pth")
    got = create_backbone(f"resnet{depth}", pretrained=tmp_path / "resnet.pth").state_dict()
    assert all(torch.equal(got[name], value) for name, value in state.items() if not name.startswith("fc."))
    del state["layer1.0.bn1.running_mean"]
    torch.save(state, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"2 missing: layer1.0.bn1.num_batches_tracked, layer1.0.bn1.running_mean"):
        create_backbone(f"resnet{depth}", pretrained=tmp_path / "resnet.pth")


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_features_are_those_of_the_whole_network(name, tmp_path):
    whole = randomised(timm.create_model(name))
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    net = create_backbone(name, pretrained=tmp_path / "whole.safetensors", features_only=True).eval()
    side = 224 if name.startswith("vit") else 64
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    modules = dict(whole.named_modules())
    seen: dict[str, torch.Tensor] = {}
    taps = net.feature_info.get_dicts()
    if name.startswith(("vit", "hrnet")):  # their maps are no module's output
        want = whole.forward_intermediates(x, indices=len(taps), intermediates_only=True)
    else:
        for tap in taps:
            modules[tap["module"]].register_forward_hook(
                lambda module, given, out, key=tap["module"]: seen.update({key: out})
            )
        whole(x)
        want = [seen[tap["module"]] for tap in taps]
    got = net(x)
    assert len(got) == len(want) == len(taps) >= 3
    for one, other, tap in zip(got, want, taps, strict=True):
        assert one.shape[1] == tap["num_chs"]
        assert one.std() > 0
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_features_of_foreign_files(mobilenet):
    net, path = mobilenet
    features = create_backbone("mobilenetv2_100", pretrained=path, features_only=True, out_indices=(1, 4)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        got = features(x)
        torch.testing.assert_close(got[0], net.features[:4](x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[1], net.features[:18](x), atol=1e-5, rtol=1e-5)
    assert [one.shape[1:] for one in got] == [(24, 16, 16), (320, 2, 2)]


def test_features_with_stride_and_channels(tmp_path):
    whole = randomised(timm.create_model("resnet18"))
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    net = create_backbone(
        "resnet18", pretrained=tmp_path / "whole.safetensors", in_channels=1, output_stride=8, features_only=True
    )
    torch.testing.assert_close(net.conv1.weight, whole.conv1.weight.sum(1, keepdim=True))
    assert net.feature_info.reduction() == [2, 4, 8, 8, 8]
    assert net(torch.randn(1, 1, 64, 64))[-1].shape == (1, 512, 8, 8)


def test_what_the_features_lack_may_be_missing(tmp_path):
    state = randomised(timm.create_model("mobilenetv2_100")).state_dict()
    part = {name: value for name, value in state.items() if not name.startswith(("classifier.", "conv_head.", "bn2."))}
    save_file(part, tmp_path / "part.safetensors")
    net = create_backbone("mobilenetv2_100", pretrained=tmp_path / "part.safetensors", features_only=True)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match=r"\(6 missing: bn2.bias, .*Nothing was loaded"):
        create_backbone("mobilenetv2_100", pretrained=tmp_path / "part.safetensors")
    save_file(part | {"extra.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"\(1 not expected: extra.weight\)"):
        create_backbone("mobilenetv2_100", pretrained=tmp_path / "part.safetensors", features_only=True)
    del part["blocks.3.0.conv_dw.weight"]
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"\(1 missing: blocks.3.0.conv_dw.weight\)"):
        create_backbone("mobilenetv2_100", pretrained=tmp_path / "part.safetensors", features_only=True)


def test_sources_that_are_none_or_two(monkeypatch, tmp_path):
    assert feature_sources(["a_b.c", "a.d", "model.e", "f"], ["a.b.c", "a.d", "e", "head"]) == {
        "a_b.c": "a.b.c",
        "a.d": "a.d",
        "model.e": "e",
        "f": None,
    }
    assert feature_sources(["a_b.c"], ["a.b.c", "a_b.c"]) == {"a_b.c": None}
    whole = timm.create_model("resnet18")
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    monkeypatch.setattr(
        "hggraph.models.weights.feature_sources", lambda mine, full: feature_sources([*mine, "x"], full)
    )
    with pytest.raises(
        ValueError, match=r"No weights of resnet18 belong to 1 parameters of its features: x\..*Nothing"
    ):
        create_backbone("resnet18", pretrained=tmp_path / "whole.safetensors", features_only=True)


def test_two_classifiers_and_two_first_convolutions(tmp_path):
    for name in ("levit_128s", "repvgg_a0"):
        whole = randomised(timm.create_model(name))
        save_file(whole.state_dict(), tmp_path / "whole.safetensors")
        got = create_backbone(name, pretrained=tmp_path / "whole.safetensors", in_channels=1).state_dict()
        want = whole.state_dict()
        heads = whole.pretrained_cfg["classifier"]
        heads = (heads,) if isinstance(heads, str) else heads
        assert len(got) == len(want)
        for key, value in got.items():
            if not key.startswith(heads):
                same = want[key] if value.shape == want[key].shape else want[key].sum(1, keepdim=True)
                torch.testing.assert_close(value, same)


def test_older_files_of_timm(tmp_path):
    whole = randomised(timm.create_model("swin_tiny_patch4_window7_224"))
    state = whole.state_dict() | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}
    save_file(state, tmp_path / "whole.safetensors")
    got = create_backbone("swin_tiny_patch4_window7_224", pretrained=tmp_path / "whole.safetensors").state_dict()
    assert torch.equal(got["layers.3.blocks.1.mlp.fc2.weight"], state["layers.3.blocks.1.mlp.fc2.weight"])


def test_features_that_are_none():
    with pytest.raises(ValueError, match="`out_indices` chooses maps of `features_only=True`"):
        create_backbone("resnet18", out_indices=(1, 2))
    with pytest.raises(ValueError, match=r"cannot be made with .*'out_indices': \(7,\)"):
        create_backbone("resnet18", features_only=True, out_indices=(7,))
    with pytest.raises(ValueError, match=r"timm's 'mixer_s32_224' cannot be made with .*features_only"):
        create_backbone("mixer_s32_224", features_only=True, out_indices=(70,))
