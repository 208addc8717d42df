"""BSDS500 is read as published and from one folder; its numbers are segments of several people."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from hggraph.data import BSDS500, EvalTransform, HeldOut, TrainTransform
from hggraph.data.mask_reader import DatasetError

scipy_io = pytest.importorskip("scipy.io", reason="needs the extra `data`")


def maps(annotators, size=(6, 9), most=5, seed=0):
    """Return numbers from 1, as in the files."""
    return np.random.default_rng(seed).integers(1, most + 1, (annotators, *size)).astype(np.uint16)


def photo(path: Path, size=(6, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.stem)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_mat(path: Path, segments, field="Segmentation") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.empty((1, len(segments)), dtype=object)
    for i, one in enumerate(segments):
        cells[0, i] = {field: one, "Boundaries": np.zeros(one.shape, np.uint8)}
    scipy_io.savemat(path, {"groundTruth": cells})


@pytest.fixture
def published(tmp_path):
    for split, names in {"train": ["12003", "2092"], "val": ["101085"], "test": ["100007", "100039"]}.items():
        for name in names:
            photo(tmp_path / "images" / split / f"{name}.jpg")
            write_mat(tmp_path / "groundTruth" / split / f"{name}.mat", maps(len(name), seed=int(name)))
        (tmp_path / "images" / split / "Thumbs.db").write_bytes(b"as published")
    return tmp_path


@pytest.fixture
def flat(tmp_path):
    for i, name in enumerate("abcde"):
        photo(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "segmentation").mkdir(exist_ok=True)
        np.savez(tmp_path / "segmentation" / f"{name}.npz", segmentation=maps(3 + i, seed=i))
    return tmp_path


def test_as_published(published):
    for split, names in [("train", ["12003", "2092"]), ("val", ["101085"]), ("test", ["100007", "100039"])]:
        dataset = BSDS500(published, split)
        dataset.check(labels=True)
        assert dataset.names == names and dataset.classes == dataset.palette == ()
        for i, name in enumerate(names):
            want = torch.from_numpy(maps(len(name), seed=int(name)).astype(int)) - 1
            assert torch.equal(dataset.segments(i).long(), want)
    assert dataset.published == 200 and repr(dataset) == "BSDS500(test: 2 images)"
    with pytest.raises(DatasetError, match="expected 200 images, as published, got 2"):
        dataset.check(complete=True)
    sample = BSDS500(published, "val")[0]
    assert list(sample) == ["image", "mask", "name"]
    assert type(sample["image"]) is tv_tensors.Image and type(sample["mask"]) is tv_tensors.Mask
    assert sample["image"].dtype == torch.uint8 and sample["mask"].dtype == torch.int32


@pytest.mark.parametrize("within", ["data", "BSDS500/data", "BSR/BSDS500/data"])
def test_the_folder_around_it(published, tmp_path_factory, within):
    root = tmp_path_factory.mktemp("around")
    (root / within).parent.mkdir(parents=True, exist_ok=True)
    published.rename(root / within)
    assert BSDS500(root, "val").names == ["101085"]


def test_one_folder(flat):
    for split, names in [("all", list("abcde")), ("val", list("ace")), ("train", list("bd"))]:
        dataset = BSDS500(flat, split)
        dataset.check(labels=True)
        assert dataset.names == names
        for i, name in enumerate(names):
            at = "abcde".index(name)
            assert torch.equal(dataset.segments(i).long(), torch.from_numpy(maps(3 + at, seed=at).astype(int)) - 1)
    with pytest.raises(DatasetError, match="expected a split of train, val, all, got 'test'"):
        BSDS500(flat, "test")
    parts = [HeldOut(str(flat), split, dataset=BSDS500, share=0.5) for split in ("reduced", "analysis")]
    assert sorted(name for part in parts for name in part.names) == ["b", "d"]


def test_an_annotator_is_drawn_to_train_and_the_first_else(flat):
    dataset = BSDS500(flat, "train")
    all_of = dataset.segments(0)
    torch.manual_seed(0)
    found = [dataset[0]["mask"].as_subclass(torch.Tensor) for _ in range(60)]
    torch.manual_seed(0)
    assert all(torch.equal(dataset[0]["mask"], mask) for mask in found)  # by the global generator alone
    drawn = [next(a for a, one in enumerate(all_of) if torch.equal(one, mask)) for mask in found]
    assert set(drawn) == set(range(len(all_of)))
    for dataset in (BSDS500(flat, "val"), BSDS500(flat, "train", draw=False)):
        assert all(torch.equal(dataset[0]["mask"], dataset.segments(0)[0]) for _ in range(9))
    assert BSDS500(flat, "val", draw=True).read_mask.draw
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0]["mask"], dataset[0]["mask"])


def test_numbers_pass_over_255(flat):
    numbers = np.arange(54 * 7, dtype=np.uint16).reshape(7, 6, 9)  # 0 is no segment
    np.savez(flat / "segmentation" / "a.npz", segmentation=numbers)
    found = BSDS500(flat, "all").segments(0).flatten().tolist()
    assert found == [255, *range(255), *range(256, 54 * 7)]
    assert len(set(found[1:])) == 54 * 7 - 1


def test_training_and_evaluation_take_it(flat):
    dataset = BSDS500(flat, "train", transform=TrainTransform(crop=(8, 12), scale=(0.5, 0.5)))
    sample = dataset[0]
    assert sample["image"].shape == (3, 8, 12) and sample["mask"].dtype == torch.int64
    values = set(sample["mask"].unique().tolist())
    assert 255 in values and values - {255} <= set(dataset.segments(0).unique().tolist())
    dataset = BSDS500(flat, "val", transform=EvalTransform(multiple=8))
    sample = dataset[0]
    assert sample["image"].shape == (3, 8, 16) and sample["mask"].shape == sample["size"]
    assert torch.equal(sample["mask"], dataset.segments(0)[0].long())
    batch = torch.utils.data.default_collate([dataset[0], dataset[1]])  # 3 and 5 annotators
    assert batch["mask"].shape == (2, *sample["size"])


def test_plot(flat):
    pytest.importorskip("matplotlib")
    dataset = BSDS500(flat, "all")
    figure = dataset.plot(0)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "annotator 1", "annotator 2", "annotator 3"]
    image, shown = dataset[0]["image"], torch.from_numpy(np.array(figure.axes[2].images[0].get_array()))
    segments = dataset.segments(0)[1]
    for k in segments.unique().tolist():
        want = image[:, segments == k].double().mean(1).round()
        assert (shown[segments == k] == want).all()


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: path.write_bytes(b"no file of numpy"), "expected a file of numpy, got one that cannot be read"),
        (lambda path: np.savez(path, other=maps(2)), "expected an array 'segmentation' in the file, got none"),
        (lambda path: np.savez(path, segmentation=maps(2) + 2.0**31), "expected whole numbers"),
        (lambda path: np.savez(path, segmentation=maps(2).astype(np.int64) + 2**31), "expected whole numbers"),
        (lambda path: np.savez(path, segmentation=maps(2)[0]), r"expected whole numbers of shape .* \(6, 9\)"),
        (lambda path: np.savez(path, segmentation=maps(0)), r"got uint16 of shape \(0, 6, 9\)"),
        (lambda path: np.savez(path, segmentation=maps(2) / 2), "got float64 of shape"),
        (lambda path: np.savez(path, segmentation=-maps(2).astype(int)), "got int64 of shape"),
        (lambda path: np.savez(path, segmentation=np.array([{}])), "cannot be read .Object arrays"),
        (lambda path: np.savez(path, segmentation=maps(2, (6, 8))), "expected a mask of its image's size, 9 x 6 pix"),
    ],
)
def test_files_of_numpy_that_are_wrong(flat, write, text):
    write(flat / "segmentation" / "c.npz")
    dataset = BSDS500(flat, "all")
    with pytest.raises(DatasetError, match=text) as error:
        dataset.check()
    assert "c.npz" in str(error.value) and "has 1 problem:" in str(error.value)
    with pytest.raises(DatasetError, match=text):
        dataset[2]


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: path.write_bytes(b"no file of MATLAB"), "expected a MATLAB file, got one that cannot be read"),
        (lambda path: scipy_io.savemat(path, {"other": 1}), "expected an array 'groundTruth' in the file, got none"),
        (lambda path: scipy_io.savemat(path, {"groundTruth": np.eye(3)}), "expected cells with a field 'Segmentation'"),
        (lambda path: write_mat(path, maps(2), "segments"), "expected cells with a field 'Segmentation'"),
        (lambda path: write_mat(path, [maps(1)[0], maps(1, (6, 8))[0]]), "expected segmentations of one size"),
        (lambda path: write_mat(path, maps(2) + 0.5), "expected whole numbers of shape"),
        (lambda path: write_mat(path, maps(2, (9, 9))), "expected a mask of its image's size"),
    ],
)
def test_files_of_matlab_that_are_wrong(published, write, text):
    write(published / "groundTruth/val/101085.mat")
    with pytest.raises(DatasetError, match=text) as error:
        BSDS500(published, "val").check()
    assert "101085.mat" in str(error.value)


def test_missing_and_stray_files(published):
    (published / "groundTruth/test/100007.mat").unlink()
    (published / "images/test/100039.jpg").unlink()
    with pytest.raises(DatasetError, match="has 3 problems") as error:
        BSDS500(published, "test").check(complete=True)
    assert "100039.mat: a mask without an image" in str(error.value)
    assert "100007.mat: missing, the mask" in str(error.value)


def test_another_layout(tmp_path):
    for root, found in [(tmp_path / "none", "nothing: the folder does not exist"), (tmp_path, "an empty folder")]:
        with pytest.raises(DatasetError) as error:
            BSDS500(root, "test")
        text = str(error.value)
        assert "groundTruth/test/100075.mat" in text and "segmentation/100075.npz" in text
        assert text.endswith(f"Found:\n  {found}")
    with pytest.raises(DatasetError, match="expected a split of train, val, test, got 'all'"):
        BSDS500(tmp_path, "all")
