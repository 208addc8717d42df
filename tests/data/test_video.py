"""Clips of frame folders and of video files, whichever decoder there is."""

import itertools
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from hggraph.data.image import ImageError
from hggraph.data.mask_reader import DatasetError
from hggraph.data.video import VideoFolder, frame_indices


def frames(folder: Path, count: int, *, size=(4, 3), first=0, form="img_{:05d}.png") -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (first + number, 0, 0)).save(folder / form.format(number + 1))


@pytest.fixture
def kinetics(tmp_path):
    frames(tmp_path / "train/archery/abc_000001_000011", 6)
    frames(tmp_path / "train/riding a bike/def_000002_000012", 12, first=100, form="{}.png")
    frames(tmp_path / "val/riding a bike/ghi_000003_000013", 2, first=50)
    (tmp_path / "train/archery/readme.txt").write_text("no video")
    (tmp_path / "train/archery/empty").mkdir()
    return tmp_path


def reds(sample) -> list[int]:
    return sample["video"][:, 0, 0, 0].tolist()


def test_folders_of_frames(kinetics):
    train = VideoFolder(kinetics, "train", frames=4)
    train.check()
    train.check(labels=True)
    assert train.classes == ("archery", "riding a bike") and len(train) == 2
    assert train.names == ["archery/abc_000001_000011", "riding a bike/def_000002_000012"]
    sample = train[0]
    assert type(sample["video"]) is tv_tensors.Video and sample["video"].shape == (4, 3, 3, 4)
    assert sample["video"].dtype == torch.uint8 and sample["label"] == 0
    assert reds(sample) == [1, 2, 3, 4]  # the middle
    assert reds(train[1]) == [104, 105, 106, 107]  # 10.png follows 9.png
    assert repr(train) == "VideoFolder(2 videos, 2 classes)"


def test_a_split_numbers_classes_as_training_does(kinetics):
    val = VideoFolder(kinetics, "val", frames=3, step=2)
    assert val[0]["label"] == 1 and reds(val[0]) == [50, 51, 51]  # too short: the last frame again
    assert VideoFolder(kinetics / "val", None).classes == ("riding a bike",)
    frames(kinetics / "val/juggling/x", 1)
    with pytest.raises(DatasetError, match=r"val has classes that .*train has not: juggling"):
        VideoFolder(kinetics, "val")


def test_clips_are_spread_over_the_video(kinetics):
    one = VideoFolder(kinetics, "train", frames=2)[0]["video"]
    three = VideoFolder(kinetics, "train", frames=2, clips=3)[0]["video"]
    assert three.shape == (3, *one.shape) and torch.equal(three[1], one)  # the middle
    assert [clip[:, 0, 0, 0].tolist() for clip in three] == [[0, 1], [2, 3], [4, 5]]
    short = VideoFolder(kinetics, "val", frames=3, clips=2)[0]["video"]
    assert torch.equal(short[0], short[1])  # there is no room for two
    with pytest.raises(ValueError, match="`clips` are for evaluation, without `random_start`, got 2"):
        VideoFolder(kinetics, "train", random_start=True, clips=2)


def test_random_start_is_torchs(kinetics):
    dataset = VideoFolder(kinetics, "train", frames=2, random_start=True)
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        first = reds(dataset[0])
        torch.manual_seed(seed)
        assert reds(dataset[0]) == first
        starts.add(first[0])
    assert starts == {0, 1, 2, 3, 4}


def test_transform(kinetics):
    from torchvision.transforms import v2

    dataset = VideoFolder(kinetics, "train", frames=4, transform=v2.Resize((6, 8)))
    assert dataset[0]["video"].shape == (4, 3, 6, 8)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 5))
def test_frame_indices(total, count, step):
    indices = frame_indices(total, count, step)
    assert len(indices) == count and all(0 <= index < total for index in indices)
    span = (count - 1) * step + 1
    if total >= span:
        before, after = indices[0], total - 1 - indices[-1]
        assert [b - a for a, b in itertools.pairwise(indices)] == [step] * (count - 1)
        assert after - before in (0, 1)  # in the middle
    else:
        assert indices == [min(number * step, total - 1) for number in range(count)]


def test_what_is_wrong_is_told(kinetics):
    Image.new("RGB", (5, 3)).save(kinetics / "train/archery/abc_000001_000011/img_00003.png")
    (kinetics / "train/riding a bike/def_000002_000012/6.png").write_bytes(b"words")
    dataset = VideoFolder(kinetics, "train", frames=16)
    for labels in (False, True):
        with pytest.raises(DatasetError, match="has 2 problems") as error:
            dataset.check(labels)
        assert "abc_000001_000011: expected frames of one size, got 4 x 3, 5 x 3" in str(error.value)
        assert "6.png: expected PNG" in str(error.value)
    with pytest.raises(ImageError, match=r"6\.png"):
        dataset[1]


def test_two_of_one_name(tmp_path):
    for path in ("a/x.mp4", "b/y/img_1.png", "b/y/img_2.png", "b/y/img_1.jpg"):
        Path(tmp_path, path).parent.mkdir(parents=True, exist_ok=True)
        Path(tmp_path, path).write_bytes(b"x")
    dataset = VideoFolder(tmp_path, None)
    for look in (dataset.check, lambda: dataset[1]):
        with pytest.raises(DatasetError, match=r"img_1\.png and img_1\.jpg have one name; which is meant"):
            look()
    for twin, text in (("a/x.avi", r"x\.mp4 and x\.avi"), ("a/x/1.png", r"a/x and x\.mp4")):
        Path(tmp_path, twin).parent.mkdir(exist_ok=True)
        Path(tmp_path, twin).touch()
        with pytest.raises(DatasetError, match=rf"{text} have one name"):
            VideoFolder(tmp_path, None)
        Path(tmp_path, twin).unlink()


def test_another_layout(tmp_path):
    with pytest.raises(DatasetError, match=r"has another layout(.|\n)*CLASS/NAME/img_00001.jpg"):
        VideoFolder(tmp_path)
    (tmp_path / "train/archery").mkdir(parents=True)
    with pytest.raises(DatasetError, match="has another layout"):
        VideoFolder(tmp_path)
    for options in ({"frames": 0}, {"step": 0}):
        with pytest.raises(ValueError, match="must be"):
            VideoFolder(tmp_path, **options)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train/archery/abc.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no video at all")
    return path


def test_without_a_decoder(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        ImportError, match=r"abc\.mp4: .* pip install torchcodec, or pip install av, or give the frames"
    ):
        VideoFolder(file.parents[2])[0]


def test_torchcodec(file, monkeypatch):
    """What is asked of torchcodec, with a stand-in: it needs FFmpeg's libraries."""

    class VideoDecoder:
        def __init__(self, source):
            if Path(source).read_bytes() == b"no video at all":
                raise RuntimeError("Could not open input file")
            self.metadata = types.SimpleNamespace(num_frames=len(Path(source).read_bytes()))

        def get_frames_at(self, *, indices):
            data = torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 3, 4)
            return types.SimpleNamespace(data=data)

    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    decoders = types.ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = VideoDecoder
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    dataset = VideoFolder(file.parents[2], frames=3, step=2)
    with pytest.raises(DatasetError, match=r"abc\.mp4: .* cannot be decoded \(Could not open input file\)"):
        dataset[0]
    file.write_bytes(bytes(9))
    assert reds(dataset[0]) == [2, 4, 6] and dataset[0]["video"].shape == (3, 3, 3, 4)
    file.write_bytes(b"")
    for check in (dataset.check, lambda: dataset.check(labels=True)):
        with pytest.raises(DatasetError, match=r"abc\.mp4: expected a video, got an empty file"):
            check()


def test_pyav(file, monkeypatch):
    av = pytest.importorskip("av", reason="decodes video files")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(20):
            pixels = np.full((16, 32, 3), 12 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    dataset = VideoFolder(file.parents[2], frames=4, step=3)
    dataset.check(labels=True)
    sample = dataset[0]
    assert sample["video"].shape == (4, 3, 16, 32) and sample["video"].dtype == torch.uint8
    indices = frame_indices(20, 4, 3)
    assert abs(sample["video"].float().mean((1, 2, 3)) - 12 * torch.tensor(indices)).max() < 4  # lossy
    for content in (b"words", file.read_bytes()[:400]):
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=r"abc\.mp4: expected a video, got one"):
            dataset[0]
