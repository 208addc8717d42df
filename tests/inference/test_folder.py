"""Folders of images: results are those of single predictions, bad images do not stop the rest, names stay apart."""

import errno
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from hggraph._files import unique_names
from hggraph.data import ImageError, load_graph, load_image
from hggraph.inference import folder as folder_module
from hggraph.inference.folder import predict_folder
from hggraph.inference.outputs import class_colors
from hggraph.inference.predictor import Predictor
from hggraph.models import hg_resnet

STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, size in [("a.png", (20, 30)), ("b.png", (31, 17)), ("c.jpg", (1, 1)), ("d.png", (25, 25))]:
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def network(classes=4):
    torch.manual_seed(0)
    return nn.Conv2d(3, classes, 3, padding=1).requires_grad_(False)


def silent():
    return Console(file=io.StringIO(), width=300)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def labels_of(path):
    with Image.open(path) as picture:
        return np.array(picture)


def expected_of(net, path):
    mean, std = (torch.tensor(STATISTICS[name]).view(3, 1, 1) for name in ("mean", "std"))
    return net((load_image(path) - mean)[None] / std)[0]


def test_results_are_those_of_single_images(tmp_path, photos):
    net, out = network(), tmp_path / "new" / "out"
    console = silent()
    result = predict_folder(
        Predictor(net, window=16, overlap=8),
        [photos],
        out,
        **STATISTICS,
        probabilities=True,
        overlay=True,
        console=console,
    )
    names = ["a", "b", "c", "d"]
    assert list(result.done.values()) == names and not result.failed
    assert result.images_per_second == pytest.approx(4 / result.seconds)
    kinds = [("labels", "png"), ("overlay", "png"), ("probabilities", "npz")]
    assert files(out) == [f"{kind}/{name}.{suffix}" for kind, suffix in kinds for name in names]
    assert console.file.getvalue() == ""  # not a terminal
    for path, name in result.done.items():
        expected = expected_of(net, path).softmax(0)
        with np.load(out / "probabilities" / f"{name}.npz") as file:
            np.testing.assert_allclose(file["probabilities"], expected, rtol=0, atol=3e-4)
        assert np.array_equal(labels_of(out / "labels" / f"{name}.png"), expected.argmax(0))
        assert load_image(out / "overlay" / f"{name}.png").shape == load_image(path).shape
    again = predict_folder(Predictor(net, window=16, overlap=8), [photos], out, **STATISTICS, console=silent())
    assert again.done == result.done and len(files(out)) == 12


def test_one_class(tmp_path, photos):
    net, out = network(1), tmp_path / "out"
    predict_folder(
        Predictor(net),
        [photos / "a.png"],
        out,
        **STATISTICS,
        palette=[(0, 0, 0), (255, 255, 0)],
        probabilities=True,
        overlay=True,
        hidden=[0],
        console=silent(),
    )
    expected = expected_of(net, photos / "a.png")[0].sigmoid()
    found = labels_of(out / "probabilities" / "a.png") / 65535
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    labels = labels_of(out / "labels" / "a.png")
    assert np.array_equal(labels, expected >= 0.5) and 0 < labels.mean() < 1
    photo, overlay = load_image(photos / "a.png").numpy(), load_image(out / "overlay" / "a.png").numpy()
    assert np.array_equal(overlay[:, labels == 0], photo[:, labels == 0])
    assert not np.array_equal(overlay[:, labels == 1], photo[:, labels == 1])


def test_bad_images_are_reported_and_the_rest_go_on(tmp_path, photos):
    (photos / "b.png").write_text("not a picture")
    whole = (photos / "d.png").read_bytes()
    (photos / "d.png").write_bytes(whole[: len(whole) // 2])
    (photos / "e.png").touch()
    console, out = silent(), tmp_path / "out"
    result = predict_folder(Predictor(network()), [photos], out, **STATISTICS, console=console)
    assert [path.name for path in result.done] == ["a.png", "c.jpg"]
    assert files(out) == ["labels/a.png", "labels/c.png"]
    assert [path.name for path in result.failed] == ["b.png", "d.png", "e.png"]
    for path, text in result.failed.items():
        assert str(path) in text and "\n" not in text and f"error: {text}" in console.file.getvalue()
    assert "another format" in result.failed[photos / "b.png"]


def test_an_image_that_the_network_refuses(tmp_path, photos):
    class Picky(nn.Module):
        def forward(self, x):
            if x.shape[2] < 10:
                raise ValueError("The images are too small:\n  use larger ones.")
            return x

    result = predict_folder(Predictor(Picky()), [photos], tmp_path / "out", **STATISTICS, console=silent())
    assert result.failed == {photos / "c.jpg": f"{photos / 'c.jpg'}: The images are too small: use larger ones."}
    assert len(result.done) == 3


def test_too_large_images(tmp_path, photos):
    result = predict_folder(
        Predictor(network()), [photos], tmp_path / "out", **STATISTICS, max_pixels=550, console=silent()
    )
    assert [path.name for path in result.failed] == ["a.png", "d.png"]


def test_a_full_disk_ends_the_job(tmp_path, photos, monkeypatch):
    saved = []

    def save(files):
        if saved:
            raise OSError(errno.ENOSPC, "No space left on device", str(next(iter(files))))
        saved.append(files)

    monkeypatch.setattr(folder_module, "write_together", save)
    with pytest.raises(OSError, match="No space left"):
        predict_folder(Predictor(network()), [photos], tmp_path / "out", **STATISTICS, console=silent())
    assert len(saved) == 1

    def refuse(files):
        raise OSError(errno.ENAMETOOLONG, "File name too long")

    monkeypatch.setattr(folder_module, "write_together", refuse)
    result = predict_folder(Predictor(network()), [photos], tmp_path / "out", **STATISTICS, console=silent())
    assert len(result.failed) == 4 and not result.done and result.images_per_second == 0


def test_a_mistake_in_the_program_is_not_hidden(tmp_path, photos):
    class Wrong(nn.Module):
        def forward(self, x):
            return x.no_such_thing

    with pytest.raises(AttributeError):
        predict_folder(Predictor(Wrong()), [photos], tmp_path / "out", **STATISTICS, console=silent())


def test_bad_arguments(tmp_path, photos):
    predictor, out = Predictor(network()), tmp_path / "out"
    cases = [
        ({"paths": [tmp_path / "none"]}, ImageError, "does not exist"),
        ({"mean": [0.5]}, ValueError, r"`mean` must be red, green and blue, got \[0.5\]"),
        ({"std": [0.5, 0, 1]}, ValueError, "`std` above 0"),
        ({"palette": [(0, 0, 400)]}, ValueError, "`palette` must hold red, green and blue"),
        ({"regions": True}, TypeError, "Conv2d has no regions to return"),
    ]
    for options, error, text in cases:
        with pytest.raises(error, match=text):
            predict_folder(predictor, **{"paths": [photos], "out": out, **STATISTICS, "console": silent(), **options})
    assert not out.exists()
    inside = out / "labels"
    inside.mkdir(parents=True)
    (photos / "a.png").rename(inside / "a.png")
    with pytest.raises(ValueError, match=r"would be written beside the image .*a\.png; choose another `out`"):
        predict_folder(predictor, [inside], out, **STATISTICS, console=silent())


def test_folders_that_cannot_be_made(tmp_path, photos):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        predict_folder(Predictor(network()), [photos], tmp_path / "file" / "out", **STATISTICS, console=silent())
    if os.access("/proc/self", os.X_OK):
        with pytest.raises(OSError):
            predict_folder(Predictor(network()), [photos], "/proc/self/out", **STATISTICS, console=silent())


def test_names(tmp_path):
    def names(*paths):
        found = unique_names([tmp_path / path for path in paths])
        assert len({name.casefold() for name in found}) == len(paths)
        return found

    assert names("x/1.png", "y/2.png") == ["1", "2"]
    assert names("x/1.png", "y/1.png", "y/2.png") == ["x_1", "y_1", "2"]
    assert names("x/1.png", "x/1.jpg") == ["x_1", "x_1-2"]
    assert names("x/a.png", "y/A.png", "x_a.png") == ["x_a", "y_A", "x_a-2"]
    assert names("z/x/1.png", "w/x/1.png", "w/x/1.jpg") == ["x_1", "x_1-2", "x_1-3"]
    assert names("x/a.png", "y/a.png", "X_A.png") == ["x_a", "y_a", "X_A-2"]
    assert names() == []


def test_images_of_one_name_from_two_folders(tmp_path, photos):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (5, 5)).save(other / "a.jpg")
    out = tmp_path / "out"
    result = predict_folder(
        Predictor(network()), [photos / "a.png", other, other / "a.jpg"], out, **STATISTICS, console=silent()
    )
    assert files(out) == ["labels/other_a.png", "labels/photos_a.png"]
    assert labels_of(out / "labels" / "other_a.png").shape == (5, 5) and len(result.done) == 2


def test_progress_on_a_terminal(tmp_path, photos):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    predict_folder(Predictor(network()), [photos], tmp_path / "out", **STATISTICS, console=console)
    text = console.file.getvalue()
    assert "4/4" in text and "images/s" in text and "0:00:00" in text


def test_region_graphs(tmp_path, photos):
    for path in photos.iterdir():
        path.unlink()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (65, 81, 3), dtype=np.uint8)).save(photos / "street.png")
    net, out = hg_resnet(18, num_classes=5), tmp_path / "out"
    predict_folder(Predictor(net), [photos], out, **STATISTICS, regions=True, console=silent())
    mean, std = (torch.tensor(STATISTICS[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        (expected,) = net.eval()((load_image(photos / "street.png") - mean)[None] / std, return_regions=True)["regions"]
    assert files(out) == ["labels/street.png", f"regions/{expected.name}/street.pt"]
    graph = load_graph(out / "regions" / expected.name / "street.pt")
    assert graph.num_nodes == expected.assignment.num_regions
    assert torch.equal(graph.edge_index, expected.graph.edge_index)
    torch.testing.assert_close(graph.x, expected.graph.x)


def test_default_colors(tmp_path, photos):
    predict_folder(Predictor(network()), [photos / "a.png"], tmp_path / "out", **STATISTICS, console=silent())
    with Image.open(tmp_path / "out" / "labels" / "a.png") as picture:
        colors = np.array(picture.convert("RGB")).reshape(-1, 3)
    assert {tuple(color) for color in colors.tolist()} <= set(class_colors(4))
