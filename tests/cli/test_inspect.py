"""`hggraph inspect` as a user runs it: pictures of affinities, masks and errors, bad images, wrong options."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from hggraph import SoftSLIC, viz
from hggraph.cli import app, inspect
from hggraph.data import EvalTransform, load_image, load_pixels
from hggraph.metrics import MeanIoU
from hggraph.models import from_pretrained, hg_orientation, save_pretrained, specialize_fuse
from hggraph.models.gald import gald
from hggraph.schemes.specialize import fuse

pytest.importorskip("matplotlib", reason="needs the extra `viz`")
pytest.importorskip("lightning", reason="needs the extra `train`")

CLASSES = 3
STATISTICS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def words(text: str) -> str:
    """Return the text without line breaks and without the box that typer draws around errors."""
    return " ".join(text.replace("│", " ").split())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """Publish a small network of each kind."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    common = {"backbone": "resnet18", "num_classes": CLASSES, "channels": 16, "output_stride": 32, "aux": False}
    window = {"kernel_size": 3, "dilation": 1, "downsample": "average"}  # for maps of 4 x 5
    for distribution in ("v1", "v2", None):
        arguments = {**common, **window, "distribution": distribution}
        net = gald(**arguments)
        save_pretrained(net, folder / (distribution or "none"), model="gald", arguments=arguments, **STATISTICS)
    arguments = {"backbone": "hrnet_w18_small_v2", "num_classes": CLASSES, "channels": 16, "levels": 3}
    net = specialize_fuse(**arguments)
    save_pretrained(net, folder / "pyramid", model="specialize_fuse", arguments=arguments, **STATISTICS)
    arguments = {"channels": 8, "depth": 1, "clusterer": SoftSLIC(4)}
    roads = hg_orientation(**arguments)
    save_pretrained(roads, folder / "roads", model="hg_orientation", arguments=arguments, **STATISTICS)
    return folder


@pytest.fixture(scope="module", autouse=True)
def load_once() -> Iterator[None]:
    """Read each network from its files once, as they do not change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "_load", functools.cache(inspect._load))
        yield


@pytest.fixture
def photos(tmp_path) -> Path:
    """Write two photos, of different sizes, and their labels."""
    generator = np.random.default_rng(0)
    for name, size in (("a", (120, 160)), ("b", (128, 128))):
        for kind, pixels in (
            ("photos", generator.integers(0, 256, (*size, 3), dtype=np.uint8)),
            ("labels", generator.integers(0, CLASSES, size, dtype=np.uint8)),
        ):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / kind / f"{name}.png")
    return tmp_path / "photos"


@pytest.fixture
def figures(monkeypatch) -> dict[str, list]:
    """Note what is drawn, by kind, in place of real pictures: `inspect` looks the functions up in its module."""
    drawn: dict[str, list] = {}
    for kind in ("affinity", "mask", "error", "unity"):

        def draw(*args, kind=kind, **options):
            figure = getattr(viz, f"{kind}_figure")(*args, **options)
            drawn.setdefault(kind, []).append((args, options, figure))
            return figure

        monkeypatch.setattr(inspect, f"{kind}_figure", draw)
    monkeypatch.setattr(inspect, "save_figure", lambda figure, path: viz.save_figure(figure, path, dpi=20))
    return drawn


def test_affinities_of_a_folder(networks, photos, tmp_path, figures):
    out = tmp_path / "new" / "out"
    done = invoke(networks / "v2", photos, "--out", out)
    assert done.exit_code == 0, done.output
    assert names(out) == ["a_affinity.png", "b_affinity.png"]
    assert "2 of 2 images" in done.output
    (image, affinity, points, stencil), _, figure = figures["affinity"][0]
    assert points == [(30, 40), (30, 119), (89, 40), (89, 119)]
    assert len(figure.axes) == 1 + 4 + 1
    net = from_pretrained(networks / "v2")
    mean, std = (torch.tensor(STATISTICS[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(image, load_image(photos / "a.png"))
    torch.testing.assert_close(affinity, net.inspect(((image - mean) / std)[None])[0])
    assert stencil == net.distribution.attention.stencil


def test_chosen_points(networks, photos, tmp_path, figures):
    done = invoke(networks / "v2", photos / "a.png", "--out", tmp_path, "--point", "150,20", "--point", "3.5,100")
    assert done.exit_code == 0, done.output
    assert figures["affinity"][0][0][2] == [(20, 150), (100, 3.5)]


def test_point_outside_one_of_the_images(networks, photos, tmp_path, figures):
    out = tmp_path / "out"
    done = invoke(networks / "v2", photos, "--out", out, "--point", "150,20")
    assert done.exit_code == 1
    assert "b.png: `points` must be (y, x) inside the image" in words(done.output)
    assert names(out) == ["a_affinity.png"]


def test_masks_and_errors(networks, photos, tmp_path, figures):
    labels, out = tmp_path / "labels", tmp_path / "out"
    done = invoke(networks / "v1", photos / "a.png", "--out", out, "--labels", labels)
    assert done.exit_code == 0, done.output
    assert names(out) == ["a_errors.png", "a_mask.png"]
    (image, mask), _, _ = figures["mask"][0]
    assert mask.shape == (16, 4, 5)
    ((_,), (target,), (predicted,)), options, _ = figures["error"][0]
    assert options == {"names": ["a"], "ignore_index": 255}
    with Image.open(labels / "a.png") as file:
        assert np.array_equal(target, np.array(file))
    net = from_pretrained(networks / "v1")
    mean, std = (torch.tensor(STATISTICS[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        assert torch.equal(predicted, net(((image - mean) / std)[None])["out"][0].argmax(0))


@pytest.mark.parametrize("name", ["none", "roads"])
def test_any_network_shows_its_errors(networks, photos, tmp_path, figures, name):
    labels, out = tmp_path / "labels", tmp_path / "out"
    if name == "roads":  # one class: 0 and 1
        Image.new("RGB", (64, 64)).save(photos / "a.png")
        Image.fromarray(np.eye(64, dtype=np.uint8)).save(labels / "a.png")
    done = invoke(networks / name, photos / "a.png", "--out", out, "--labels", labels)
    assert done.exit_code == 0, done.output
    assert names(out) == ["a_errors.png"]


def test_pyramids(networks, photos, tmp_path, figures):
    """Unity as the network predicts it; with labels Table 9, whose fused value is the prediction's mean IoU."""
    result = invoke(networks / "pyramid", photos, "--labels", photos.parent / "labels", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert {name.rpartition("_")[2] for name in names(tmp_path / "out")} == {"unity.png", "errors.png"}
    net, metric = from_pretrained(networks / "pyramid"), MeanIoU(CLASSES)
    for (args, _, _), path in zip(figures["unity"], sorted(photos.iterdir()), strict=True):
        x = EvalTransform(**STATISTICS)({"image": load_pixels(path)})["image"][None]
        net.training = True  # the pyramids are returned; every layer stays in eval mode
        with torch.no_grad():
            out = net(x)
        net.training = False
        for found, unity in zip(args[1], out["unity"], strict=True):
            torch.testing.assert_close(found, unity[0].sigmoid())
        fused = fuse(out["semantic"], [u.sigmoid() for u in out["unity"]]).argmax(1)
        pixels = fused.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : x.shape[2], : x.shape[3]]
        labels = torch.from_numpy(np.array(Image.open(photos.parent / "labels" / path.name))).long()
        metric.update(pixels, labels[None])
    assert f"fused {100 * float(metric.compute()['miou']):.1f}" in words(result.output)
    with pytest.raises(ValueError, match="must be in eval mode to be looked at"):
        net.train().inspect(torch.rand(1, 3, 32, 32))


def test_nothing_to_look_at(networks, photos, tmp_path):
    out = tmp_path / "out"
    done = invoke(networks / "none", photos, "--out", out)
    assert done.exit_code == 2 and not out.exists()
    assert "is a GALD without a local distribution or a pyramid to look at. Give --labels" in words(done.output)
    done = invoke(networks / "v1", photos, "--out", out, "--point", "5,5")
    assert done.exit_code == 2 and "--point is for networks with distribution='v2'" in words(done.output)


def test_bad_images_are_skipped_and_leave_nothing(networks, photos, tmp_path, figures):
    labels, out = tmp_path / "labels", tmp_path / "out"
    (photos / "c.png").write_bytes(b"nothing")
    Image.new("RGB", (20, 20)).save(photos / "d.png")  # its map is smaller than the window
    for name in "cd":
        Image.new("L", (20, 20)).save(labels / f"{name}.png")
    Image.new("L", (130, 128)).save(labels / "b.png")
    done = invoke(networks / "v2", photos, "--out", out, "--labels", labels)
    assert done.exit_code == 1
    text = words(done.output)
    assert "b.png: expected labels of the image's size, 128 x 128 pixels, got 130 x 128" in text
    assert "c.png: expected PNG" in text
    assert "d.png: The window must fit the map" in text
    assert "1 of 4 images" in text
    assert names(out) == ["a_affinity.png", "a_errors.png"]  # nor the affinity of b


def test_a_full_disk_stops_at_once(networks, photos, tmp_path, monkeypatch):
    tried = []

    def full(figure, path):
        tried.append(path)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(inspect, "save_figure", full)
    done = invoke(networks / "v2", photos, "--out", tmp_path / "out", "--point", "5,5")
    assert done.exit_code == 1 and len(tried) == 1
    assert done.stderr == f"error: {tmp_path / 'out' / 'a_affinity.png'}: No space left on device\n"


def test_labels_that_are_no_class(networks, photos, tmp_path, figures):
    labels, out = tmp_path / "labels", tmp_path / "out"
    pixels = np.zeros((120, 160), dtype=np.uint8)
    pixels[:2, :2], pixels[5:] = [[3, 11], [11, 255]], 11
    Image.fromarray(pixels).save(labels / "a.png")
    common = (networks / "none", photos / "a.png", "--out", out, "--labels", labels)
    done = invoke(*common)
    assert done.exit_code == 1 and names(out) == []
    assert "a.png: expected labels from 0 to 2, and 255 for pixels that do not count, got 3, 11; name" in words(
        done.output
    )
    pixels[:2, :2] = 0
    Image.fromarray(pixels).save(labels / "a.png")
    assert invoke(*common, "--ignore", 11).exit_code == 0
    assert figures["error"][0][1]["ignore_index"] == 11


def test_same_names_stay_apart(networks, photos, tmp_path, figures):
    other = tmp_path / "other"
    other.mkdir()
    Image.open(photos / "b.png").save(other / "a.png")
    out = tmp_path / "out"
    done = invoke(networks / "v1", photos / "a.png", other, "--out", out)
    assert done.exit_code == 0, done.output
    assert names(out) == ["other_a_mask.png", "photos_a_mask.png"]


def test_labels_missing_or_in_danger(networks, photos, tmp_path):
    labels, out = tmp_path / "labels", tmp_path / "out"
    (labels / "b.png").unlink()
    done = invoke(networks / "v2", photos, "--out", out, "--labels", labels)
    assert done.exit_code == 2 and not out.exists()
    assert "has no labels for b.png (b.png)" in words(done.output)
    before = (labels / "a.png").rename(labels / "a_errors.png").read_bytes()
    (photos / "a.png").rename(photos / "a_errors.png")
    Image.open(photos / "b.png").save(photos / "a.png")
    Image.new("L", (128, 128)).save(labels / "a.png")
    done = invoke(networks / "v2", photos / "a.png", "--out", labels, "--labels", labels)
    assert done.exit_code == 2 and "would be written over" in words(done.output)
    assert (labels / "a_errors.png").read_bytes() == before


@pytest.mark.parametrize("text", ["5", "5,6,7", "a,b", "5;6"])
def test_bad_point(networks, photos, tmp_path, text):
    done = invoke(networks / "v2", photos, "--out", tmp_path / "out", "--point", text)
    assert done.exit_code == 2
    assert f"--point must be X,Y in pixels, for example 160,120, got '{text}'" in words(done.output)


def test_wrong_network_or_image(networks, photos, tmp_path):
    out = tmp_path / "out"
    done = invoke(tmp_path / "no run", photos, "--out", out)
    assert done.exit_code == 1 and "error: There is no folder" in done.stderr
    done = invoke(networks / "v2", tmp_path / "none.png", "--out", out)
    assert done.exit_code == 2 and not out.exists()


def test_without_matplotlib(networks, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = invoke(networks / "v2", photos, "--out", tmp_path / "out")
    assert done.exit_code == 2 and 'pip install "hggraph[viz]"' in words(done.output)
