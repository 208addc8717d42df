"""Videos with one class each, in class folders, as Kinetics lies: video files or folders of frames."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hggraph._check import check_positive
from hggraph.data.image import ImageError, image_size, load_pixels
from hggraph.data.layout import by_name, class_names, files_in, layout_error
from hggraph.data.mask_reader import DatasetError, raise_problems
from hggraph.data.segmentation import Transform

__all__ = ["VIDEO_SUFFIXES", "VideoFolder", "frame_indices"]

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v")


class VideoFolder(Dataset[dict[str, Any]]):
    """Clips of videos in class folders (Kinetics, UCF101, HMDB51): video files, folders of frames, or both.

    ::

        root/split/class/name.mp4
        root/split/class/name/img_00001.jpg

    Args:
        root: The folder.
        split: A folder in it, or None for `root` itself.
        frames: Frames of a clip.
        step: From one frame of a clip to the next, in frames of the video.
        random_start: Begin anywhere in the video (by torch's generator), for training; else the clip is its middle.
        clips: Without `random_start`: how many clips, spread evenly over the video; more than one give ``"video"`` a
            dimension before the others.
        transform: Takes a sample and returns another.

    The classes are the folders of ``root/train`` where there is one, so that every split numbers them the same, else
    those of the split; in alphabetical order. An item is a dict: ``"video"``, a ``tv_tensors.Video`` of bytes
    ``(T, 3, H, W)``, of several clips ``(N, T, 3, H, W)``; ``"label"``, the number of its class; and ``"name"``, its
    path in the split. In a video shorter than a clip the last frame is repeated. Frames in a folder follow the numbers
    in their names and are read with Pillow; video files with torchcodec or, without it, PyAV.

    Raises:
        DatasetError: if there are no classes or videos, two videos of a class have one name, or the split has a class
            that ``root/train`` lacks. An item raises it, or `ImageError`, naming the file: for videos that cannot be
            decoded or have no frames, and frames of different sizes or of one name.
        ImportError: by an item that is a video file, if neither torchcodec nor PyAV is installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "train", "archery", "clip").mkdir(parents=True)
        ...     for number in range(5):
        ...         Image.new("RGB", (4, 3), (number, 0, 0)).save(f"{root}/train/archery/clip/img_{number}.png")
        ...     sample = VideoFolder(root, "train", frames=3)[0]
        >>> sample["video"].shape, sample["video"][:, 0, 0, 0].tolist(), sample["label"], sample["name"]
        (torch.Size([3, 3, 3, 4]), [1, 2, 3], 0, 'archery/clip')
    """

    LAYOUT = "CLASS/NAME.mp4\nor\nCLASS/NAME/img_00001.jpg"

    def __init__(
        self,
        root: str | Path,
        split: str | None = "train",
        *,
        frames: int = 16,
        step: int = 1,
        random_start: bool = False,
        clips: int = 1,
        transform: Transform | None = None,
    ) -> None:
        check_positive("frames", frames)
        check_positive("step", step)
        check_positive("clips", clips)
        base = Path(root) / (split or "")
        self.classes, here = class_names(type(self).__name__, Path(root), split, self.LAYOUT)
        self.items = [(path, self.classes.index(name)) for name in here for path in _videos(base / name)]
        if not self.items:
            raise layout_error(type(self).__name__, base, self.LAYOUT)
        self.names = [path.relative_to(base).as_posix() for path, _ in self.items]
        if random_start and clips > 1:
            raise ValueError(f"`clips` are for evaluation, without `random_start`, got {clips}.")
        self.frames, self.step, self.random_start, self.transform = frames, step, random_start, transform
        self.clips = clips

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from torchvision import tv_tensors

        path, label = self.items[index]
        clip = self._of_images(path) if path.is_dir() else self._of_file(path)
        if self.clips > 1:
            clip = clip.unflatten(0, (self.clips, self.frames))
        sample = {"video": tv_tensors.Video(clip), "label": label, "name": self.names[index]}
        return sample if self.transform is None else self.transform(sample)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} videos, {len(self.classes)} classes)"

    def check(self, labels: bool = False, *, sizes: bool = True) -> None:
        """Look at every video and raise one error that says all that is wrong.

        Args:
            labels: Decode a clip of each; else folders of frames are looked at by the sizes in their headers.
            sizes: Look at the headers; False looks at names alone, for a quick look at large sets.

        Raises:
            DatasetError: if a video cannot be read, or its frames differ in size; the text names the first 10 problems
                and says how many there are.
        """
        problems = []
        for index, (path, _) in enumerate(self.items):
            try:
                if labels:
                    self[index]
                elif not path.is_dir():
                    _check_file(path)
                elif sizes:
                    _same_size(path, [image_size(frame) for frame in _frames(path)])
            except (ImageError, DatasetError) as error:
                problems.append(str(error).rstrip("."))
        raise_problems(repr(self), problems)

    def _indices(self, path: Path, total: int) -> list[int]:
        if total < 1:
            raise DatasetError(f"{path}: expected a video, got one without frames.")
        return frame_indices(total, self.frames, self.step, random_start=self.random_start, clips=self.clips)

    def _of_images(self, folder: Path) -> Tensor:
        files = _frames(folder)
        indices = self._indices(folder, len(files))
        decoded = {index: load_pixels(files[index]) for index in sorted(set(indices))}
        _same_size(folder, [tuple(image.shape[1:]) for image in decoded.values()])
        return torch.stack([decoded[index] for index in indices])

    def _of_file(self, path: Path) -> Tensor:
        _check_file(path)
        try:
            from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]  # may be missing
        except (ImportError, RuntimeError, OSError):  # RuntimeError and OSError: without its FFmpeg libraries
            return self._of_container(path)
        with _decoding(path, RuntimeError, ValueError, IndexError):
            decoder = VideoDecoder(str(path))
            indices = self._indices(path, int(decoder.metadata.num_frames or 0))
            clip: Tensor = decoder.get_frames_at(indices=indices).data
        return clip

    def _of_container(self, path: Path) -> Tensor:
        try:
            import av  # type: ignore[import-not-found]  # may be missing
        except ImportError as error:
            raise ImportError(
                f"{path}: video files are decoded with torchcodec or PyAV, and neither is installed: "
                "pip install torchcodec, or pip install av, or give the frames as images in a folder."
            ) from error
        decoded: dict[int, Tensor] = {}
        with _decoding(path, av.FFmpegError, IndexError):
            with av.open(str(path)) as container:
                total = sum(packet.size > 0 for packet in container.demux(video=0))  # one packet is one frame
            indices = self._indices(path, total)
            wanted = set(indices)
            with av.open(str(path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        decoded[number] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                    if number >= max(indices):
                        break
            if not decoded:
                raise IndexError("it has no frames")
        _same_size(path, [tuple(image.shape[1:]) for image in decoded.values()])
        last = max(decoded)  # a damaged end: the last frame that could be decoded is repeated
        return torch.stack([decoded[min(index, last)] for index in indices])


def frame_indices(total: int, frames: int, step: int = 1, *, random_start: bool = False, clips: int = 1) -> list[int]:
    """Return the frames of a video that make a clip, or several.

    Args:
        total: Frames of the video, at least 1.
        frames: Frames of the clip.
        step: From one to the next.
        random_start: Begin anywhere (by torch's generator), else so that the clip is the middle of the video.
        clips: How many, from the video's beginning to its end; of one clip the middle.

    Returns:
        Indices from 0, in order in each clip; of a video that is too short the last comes again and again.

    Example:
        >>> frame_indices(9, 3, 2), frame_indices(2, 4), frame_indices(9, 2, clips=3)
        ([2, 4, 6], [0, 1, 1, 1], [0, 1, 4, 5, 7, 8])
    """
    room = max(0, total - 1 - (frames - 1) * step)
    starts = [room // 2] if clips == 1 else [round(room * number / (clips - 1)) for number in range(clips)]
    if random_start:
        starts = [int(torch.randint(room + 1, ()))]
    return [min(start + number * step, total - 1) for start in starts for number in range(frames)]


def _videos(folder: Path) -> list[Path]:
    files = by_name(files_in(folder, VIDEO_SUFFIXES), folder)
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and files_in(path)]
    twice = [path for path in folders if path.name in files]
    if twice:
        raise DatasetError(
            f"{twice[0]} and {files[twice[0].name].name} have one name; which is meant? Remove one of them."
        )
    return sorted([*files.values(), *folders])


def _check_file(path: Path) -> None:
    if not path.is_file() or path.stat().st_size == 0:
        raise DatasetError(f"{path}: expected a video, got {'an empty file' if path.is_file() else 'no file'}.")


def _frames(folder: Path) -> list[Path]:
    """Return the images of a folder by the numbers in their names: ``img_10`` after ``img_9``."""
    return sorted(
        by_name(files_in(folder), folder).values(),
        key=lambda path: [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path.name)],
    )


def _same_size(folder: Path, sizes: Sequence[tuple[int, ...]]) -> None:
    if len(set(sizes)) > 1:
        found = ", ".join(f"{width} x {height}" for height, width in sorted(set(sizes))[:3])
        raise DatasetError(f"{folder}: expected frames of one size, got {found}.")


@contextmanager
def _decoding(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn a decoder's errors into one that names the file."""
    try:
        yield
    except DatasetError:
        raise
    except errors as error:
        raise DatasetError(
            f"{path}: expected a video, got one that cannot be decoded ({error}); fetch it again."
        ) from error
