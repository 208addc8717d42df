"""Weights: whole or not at all, and errors that say what to do."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from hggraph.models import hg_resnet, load_weights, save_weights
from hggraph.models.weights import create_backbone


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    return path


def test_local_file(file):
    want = timm.create_model("resnet18")
    load_weights(want, file)
    for hg_stages in ((), (4,)):
        net = hg_resnet(18, hg_stages=hg_stages, pretrained=file).trunk
        assert torch.equal(net.stem[0].weight, want.conv1.weight)
        stage = net.stages[3] if not hg_stages else net.hg.to_stage()
        assert torch.equal(stage[1].conv2.weight, want.layer4[1].conv2.weight)
        assert torch.equal(stage[1].bn2.running_var, want.layer4[1].bn2.running_var)


def test_other_channels_and_pth(file, tmp_path):
    net = create_backbone("resnet18", pretrained=file, in_channels=1)
    want = create_backbone("resnet18", pretrained=file)
    torch.testing.assert_close(net.conv1.weight, want.conv1.weight.sum(1, keepdim=True))
    state = {name: value for name, value in want.state_dict().items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "trunk.pth")
    assert torch.equal(create_backbone("resnet18", pretrained=tmp_path / "trunk.pth").conv1.weight, want.conv1.weight)


def test_weights_of_another_network(file):
    with pytest.raises(ValueError, match=r"are not those of resnet34 \(\d+ missing: layer1.2.*Nothing was loaded"):
        hg_resnet(34, pretrained=file)
    with pytest.raises(ValueError, match=r"are not those of resnet50.*of another shape: .* instead of"):
        hg_resnet(50, stem="plain", pretrained=file)
    net = hg_resnet(18)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="are not those of HGResNet"):
        load_weights(net, file)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*none.safetensors"):
        hg_resnet(18, pretrained=tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(ValueError, match=r"text.safetensors is not a file of weights"):
        hg_resnet(18, pretrained=tmp_path / "text.safetensors")


def test_download_that_fails(monkeypatch):
    def fail(repository, name, **options):
        raise OSError(f"no route to {repository}/{name}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(
        RuntimeError, match=r"model.safetensors of \S+/resnet18.a1_in1k .*pretrained='model.safetensors'"
    ):
        hg_resnet(18, pretrained=True)


def test_download(monkeypatch, file):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *what, **options: asked.append(what) or str(file))
    net = create_backbone("resnet18", pretrained=True)
    want = create_backbone("resnet18", pretrained=file)
    assert asked == [("timm/resnet18.a1_in1k", "model.safetensors")]
    assert torch.equal(net.layer4[0].conv1.weight, want.layer4[0].conv1.weight)


def test_save_and_load(tmp_path):
    net = hg_resnet(18, "dcn", num_classes=2).to(memory_format=torch.channels_last)
    path = tmp_path / "net.safetensors"
    save_weights(net, path)
    other = hg_resnet(18, "dcn", num_classes=2)
    load_weights(other, path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        save_weights(net, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="are not those of HGResNet"):
        load_weights(hg_resnet(18, "dcn", num_classes=3), path)
