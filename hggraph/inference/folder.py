"""Prediction of many image files: a picture of labels for each, and what else is asked for."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from hggraph._files import unique_names
from hggraph.data.graph_file import save_graph
from hggraph.data.image import MAX_PIXELS, list_images, load_image
from hggraph.inference.outputs import Color, check_palette, save_labels, save_overlay, save_probabilities
from hggraph.inference.predictor import Predictor, to_labels

__all__ = ["FolderPrediction", "predict_folder"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class FolderPrediction(NamedTuple):
    """What `predict_folder` has done.

    Args:
        done: The name of the results of each image that was predicted.
        failed: What was wrong with each of the others, on one line.
        seconds: Time taken.
    """

    done: dict[Path, str]
    failed: dict[Path, str]
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images predicted per second, reading and writing included."""
        return len(self.done) / self.seconds if self.seconds else 0.0


def predict_folder(
    predictor: Predictor,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    palette: Sequence[Color] | None = None,
    probabilities: bool = False,
    overlay: bool = False,
    hidden: Sequence[int] = (),
    regions: bool = False,
    max_pixels: int = MAX_PIXELS,
    console: Console | None = None,
) -> FolderPrediction:
    """Predict image files, one after the other; a bad one is reported and the rest go on.

    Of an image NAME.jpg these are written, each whole or not at all: ``labels/NAME.png``, a palette picture of the
    labels (`save_labels`); on request ``probabilities/NAME.npz``, or for one class ``probabilities/NAME.png``
    (`save_probabilities`); ``overlay/NAME.png``, the labels over the photo (`save_overlay`); and
    ``regions/CLUSTERING/NAME.pt``, the graph of the network's regions of the whole image (`save_graph`), one for each
    of the network's clusterings. Files of these names are replaced.

    Args:
        predictor: What predicts.
        paths: Images, and folders of them (not those inside).
        out: Folder for the results, made if missing.
        mean: Red, green and blue of colours in [0, 1]: the network gets ``(x - mean) / std``.
        std: Likewise.
        palette: Red, green, blue from 0 to 255 of each class; None: `class_colors`.
        probabilities: Write probabilities too.
        overlay: Write overlays too.
        hidden: Labels that overlays do not paint.
        regions: Write region graphs too; takes a second pass of the network.
        max_pixels: Refuse images that declare more; `predict_raster` is for those.
        console: Where failures are printed, and if it is a terminal a progress bar with images per second and the time
            left. None: the standard error.

    Returns:
        The names of the results, the failures, and the seconds taken.

    Raises:
        ImageError: if a path does not exist, or a folder has no image.
        ValueError: if a result would be written over an image, or an option is out of range.
        TypeError: if `regions` is asked of a network that has none.
        OSError: if the folder cannot be made or the disk is full: the results so far are whole.

    Note:
        Images of the same name get their folder's name before it, or a number after it. The results do not depend on
        the other images.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> predictor = Predictor(torch.nn.Conv2d(3, 4, 3, padding=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30)).save(f"{folder}/photo.jpg")
        ...     result = predict_folder(predictor, [folder], f"{folder}/out", mean=[0.5] * 3, std=[0.25] * 3)
        ...     list(result.done.values()), Path(folder, "out", "labels", "photo.png").exists()
        (['photo'], True)
    """
    images, out = list_images(paths), Path(out)
    names = unique_names(images)
    normalise = _normaliser(mean, std)
    if palette is not None:
        check_palette(palette, 0)
    if regions:
        predictor.check_regions()
    kinds = [("labels", True), ("probabilities", probabilities), ("overlay", overlay), ("regions", regions)]
    folders = {kind: out / kind for kind, wanted in kinds if wanted}
    _check_overwriting(images, folders)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)

    def convert(path: Path, name: str) -> None:
        image = load_image(path, max_pixels=max_pixels)
        x = normalise(image)[None]
        found = predictor(x)[0]
        labels, classes = to_labels(found[None])[0], max(len(found), 2)
        save_labels(labels, folders["labels"] / f"{name}.png", palette, num_classes=classes)
        if probabilities:
            suffix = ".png" if len(found) == 1 else ".npz"
            save_probabilities(found, folders["probabilities"] / f"{name}{suffix}")
        if overlay:
            save_overlay(image, labels, folders["overlay"] / f"{name}.png", palette, hidden=hidden)
        if regions:
            for clustering in predictor.regions(x):
                folder = folders["regions"] / clustering.name
                folder.mkdir(exist_ok=True)
                save_graph(clustering.graph[0].cpu(), folder / f"{name}.pt")

    start = time.perf_counter()
    done: dict[Path, str] = {}
    failed: dict[Path, str] = {}
    with _progress(console or Console(stderr=True, soft_wrap=True), len(images)) as (report, advance):
        for path, name in zip(images, names, strict=True):
            try:
                convert(path, name)
            # what one image can do wrong; a mistake in the program is not hidden, nor a full disk
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                if isinstance(error, OSError) and error.errno in _NO_ROOM:
                    raise
                text = " ".join(str(error).split()) or type(error).__name__
                failed[path] = text if str(path) in text else f"{path}: {text}"
                report(failed[path])
            else:
                done[path] = name
            advance()
    return FolderPrediction(done, failed, time.perf_counter() - start)


def _normaliser(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"`{name}` must be red, green and blue, got {list(values)}.")
    if not min(std) > 0:
        raise ValueError(f"`std` must be positive, got {list(std)}.")
    center, spread = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
    return lambda image: (image - center) / spread


def _check_overwriting(images: Sequence[Path], folders: dict[str, Path]) -> None:
    """Raise if an image lies where results go."""
    places = {folder.resolve() for folder in folders.values()}
    for image in images:
        if image.resolve().parent in places:
            raise ValueError(f"The results would be written beside the image {image}; choose another `out`.")


@contextmanager
def _progress(console: Console, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Show a bar on a terminal; give what reports a failure and what counts an image."""
    speed = TextColumn("{task.fields[speed]}", justify="right")
    columns = [TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn()]
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=total, speed="")

        def report(text: str) -> None:
            console.print(Text(f"error: {text}"), style="red")

        def advance() -> None:
            bar.advance(task)
            rate = bar.tasks[0].completed / (time.perf_counter() - start)
            bar.update(task, speed=f"{rate:.3g} images/s")

        yield report, advance
