"""Networks of any trunk: what becomes of its deep strides, all else equal."""

import pytest
import torch
import torch.nn.functional as F

from hggraph import SoftSLIC
from hggraph.cluster import Cells
from hggraph.models import from_pretrained, hg_cnn, save_pretrained
from hggraph.models.hg_cnn import Deep

FORMS = Deep.__args__


@pytest.mark.parametrize("deep", FORMS)
def test_trains(deep):
    torch.manual_seed(0)
    net = hg_cnn("mobilenetv2_050", 5, deep).train()
    x = torch.rand(2, 3, 65, 90)
    out = net(x)
    assert out["out"].shape == out["aux"].shape == (2, 5, 65, 90)
    (out["out"].square().mean() + out["aux"].square().mean()).backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert not unused and all(p.grad.isfinite().all() for p in net.parameters())
    regions = net.eval()(x, return_regions=True)["regions"]
    assert len(regions) == (deep == "regions")


def test_on_cells_it_is_the_strided_network_brought_back_by_its_cells():
    torch.manual_seed(0)
    strided = hg_cnn("mobilenetv2_050", 5, "strided").double().eval()
    on_cells = hg_cnn("mobilenetv2_050", 5, clusterer=Cells(), pooling="sample").double().eval()
    assert strided.state_dict().keys() == on_cells.state_dict().keys()
    on_cells.load_state_dict(strided.state_dict())
    x = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        fine, last = strided.trunk(x)
        last = F.interpolate(last, scale_factor=4, mode="nearest")
        expected = strided.head(strided.mix(torch.cat([fine, last], 1)))
        torch.testing.assert_close(on_cells.predict(x, None)[0]["out"], expected, rtol=1e-10, atol=1e-10)


def test_attention_reaches_the_first_level():
    net = hg_cnn("mobilenetv2_050", 5, clusterer=[SoftSLIC(4, sampling="warp"), SoftSLIC(4)]).eval()
    x, attention = torch.rand(1, 3, 128, 128), torch.zeros(1, 128, 128)
    attention[:, :40, :40] = 1
    with torch.no_grad():
        assert not torch.equal(net(x, attention)["out"], net(x)["out"])
        first = net(x)["out"]
        assert torch.equal(net(x)["out"], first)  # attention of one pass is not that of the next


def test_folds():
    torch.manual_seed(0)
    net = hg_cnn("mobilenetv2_050", 5).eval()
    x = torch.rand(1, 3, 64, 96)
    folded = net.fold()
    assert folded.aux_head is None
    with torch.no_grad():
        torch.testing.assert_close(folded(x)["out"], net(x)["out"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("clusterer", [None, Cells(), [SoftSLIC(4, iterations=1, position=2.0), Cells()]], ids=str)
def test_comes_back_from_a_folder(clusterer, tmp_path):
    arguments = {"trunk": "mobilenetv2_050", "num_classes": 5, "clusterer": clusterer}
    net = hg_cnn(**arguments).eval()
    save_pretrained(net, tmp_path / "net", model="hg_cnn", arguments=arguments)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "net")(x)["out"], net(x)["out"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deep": "pixels"}, "`deep` must be one of"),
        ({"from_stride": 32}, "must be one of the strides of mobilenetv2_050's maps but the last"),
        ({"from_stride": 3}, "must be one of the strides"),
        ({"trunk": "mobilenetv7"}, "timm has no network 'mobilenetv7'"),
        ({"trunk": "convnext_atto", "from_stride": 2}, "must be one of the strides"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        hg_cnn(**({"trunk": "mobilenetv2_050", "num_classes": 5} | arguments))


def test_weights_of_another_network(tmp_path):
    import timm

    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="are not those of mobilenetv2_050"):
        hg_cnn("mobilenetv2_050", 5, pretrained=tmp_path / "other.pth")
