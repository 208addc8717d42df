"""The ONNX file gives what the network gives."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from hggraph import SoftSLIC, ops
from hggraph.models import export_onnx, hg_resnet, hg_resunet
from hggraph.ops._library import OpenOperators
from hggraph.ops._window import BORDERS

onnxruntime = pytest.importorskip("onnxruntime")

WINDOW = [(0, 0), (-1, 0), (0, 2), (2, -1)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: hg_resnet(18, num_classes=3, clusterer=SoftSLIC(4, candidates=5)).eval(),
        pytest.param(lambda: hg_resnet(18, clusterer=SoftSLIC.paper(16)).eval(), marks=pytest.mark.slow),
        pytest.param(lambda: hg_resnet(18, num_classes=3).eval().fold(), marks=pytest.mark.slow),
        pytest.param(lambda: hg_resunet(18, plus=True, attention="object", aux=True).eval(), marks=pytest.mark.slow),
    ],
)
def test_onnx(make, tmp_path):
    net, x = make(), torch.randn(2, 3, 64, 73)
    path = tmp_path / "net.onnx"
    assert export_onnx(net, path, (64, 73), batch_size=2) == ["out"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"image": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), net(x)["out"], rtol=1e-3, atol=1e-5)


def test_errors(tmp_path):
    net = hg_resnet(18, clusterer=SoftSLIC(connected=True))
    with pytest.raises(ValueError, match="must be in eval mode"):
        export_onnx(net, tmp_path / "net.onnx", (64, 64))
    with pytest.raises(ValueError, match="must cluster with connected=False"):
        export_onnx(net.eval(), tmp_path / "net.onnx", (64, 64))
    with pytest.raises(ValueError, match=r"must end in .onnx"):
        export_onnx(net, tmp_path / "net.pt", (64, 64))
    assert not list(tmp_path.iterdir())


def test_open_operators_compute_the_same():
    x, z, s = torch.rand(1, 2, 6), torch.rand(1, 3, 2), torch.rand(1, 3, 6).softmax(1)
    k, v, bias = torch.rand(2, 3, 4, 5), torch.rand(2, 2, 4, 5), torch.rand(2, 4)

    def attend(border):
        return lambda q: ops.local_attention(q, k, v, WINDOW, border=border, bias=bias)

    runs = [
        (lambda x: ops.region_pool(x, s), x),
        (lambda s: ops.region_adjacency(s, (2, 3), [(0, 1), (0, -1), (0, 0)]), s),
        (lambda x: ops.soft_assign(x, z), x),
        (lambda z: ops.centre_update(x, z), z),
        *((attend(border), k) for border in BORDERS),
    ]
    for run, given in runs:
        want = run(given)
        with OpenOperators():
            graph = make_fx(run)(given)
        assert not any("hggraph" in str(node.target) for node in graph.graph.nodes)
        torch.testing.assert_close(graph(given), want)


def test_exported_lists_break_ties_alike():
    """Seeds on a grid are often equally near: the program exported lists the regions that the network does."""
    slic, x = SoftSLIC(num_regions=64, iterations=1).eval(), torch.randn(1, 4, 16, 16)

    class Lists(torch.nn.Module):
        def forward(self, x):
            return slic(x).index

    assert torch.equal(torch.export.export(Lists(), (x,)).module()(x), slic(x).index)
