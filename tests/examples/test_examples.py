"""The examples run, print what they promise, and stay short."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_is_short(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") < 150
    assert 'if __name__ == "__main__":' in source and "def main(" in source


def test_convolution_is_graph_convolution(capsys):
    assert load("01_convolution_is_graph_convolution").main() < 1e-10
    out = capsys.readouterr()
    assert "A convolution is a graph convolution." in out.out and not out.err


def test_photo_to_graph(tmp_path, capsys):
    graph = load("02_photo_to_graph").main(out=tmp_path / "new", regions=40)
    assert graph.num_nodes == 40
    out = capsys.readouterr()
    assert "strongest neighbours" in out.out and "GCNConv" in out.out and not out.err
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "new" / "photo_to_graph.png").stat().st_size > 10_000


@pytest.fixture
def one_thread():
    """Small graphs gain little from a second thread, and lose much to a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_compare_convolutions(capsys):
    example = load("03_compare_convolutions")
    table = example.main(epochs=1, seeds=1)
    assert list(table.columns[0].cells) == list(example.CONVOLUTIONS)
    accuracy = [float(cell.split()[0]) for cell in table.columns[1].cells]
    assert accuracy[0] > 25  # one epoch of HGConv is enough to be far from chance, 10 %
    out = capsys.readouterr()
    assert all(name in out.out for name in example.CONVOLUTIONS) and not out.err


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_compare_convolutions_over_seeds():
    example = load("03_compare_convolutions")
    table = example.main(epochs=1, seeds=2, convolutions=["GCNConv (PyG)"])
    assert "±" in next(iter(table.columns[1].cells))


def test_local_attention(capsys):
    assert load("05_local_attention").main(size=14, channels=8) < 1e-12
    out = capsys.readouterr()
    assert "on the graph of its pixels" in out.out and "every direction: True" in out.out and not out.err


def test_networks_on_regions(tmp_path, capsys):
    load("04_networks_on_regions").main(out=tmp_path / "new")
    out = capsys.readouterr()
    assert "stages 3 and 4 on regions" in out.out and "folded, they differ by" in out.out and not out.err
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "new" / "networks_on_regions.png").stat().st_size > 10_000
