"""Prediction of many image files: read, predicted in batches and written at the same time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch  # noqa: F401  (for the example)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from hggraph._files import NO_ROOM, unique_names, write_together
from hggraph._screen import harmless, screen
from hggraph.data.image import MAX_PIXELS, list_images, load_pixels
from hggraph.data.transforms import EvalTransform
from hggraph.inference.outputs import Color
from hggraph.inference.predictor import Predictor
from hggraph.inference.results import Photo, Results, results_of

__all__ = ["FolderPrediction", "predict_folder"]

AHEAD = 3  # batches that are read, or wait to be written, beside the one in the network


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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    palette: Sequence[Color] | None = None,
    probabilities: bool = False,
    overlay: bool = False,
    hidden: Sequence[int] = (),
    regions: bool = False,
    max_pixels: int = MAX_PIXELS,
    console: Console | None = None,
) -> FolderPrediction:
    """Predict image files, in batches of equal sizes; a bad one is reported and the rest go on.

    Of an image NAME.jpg these are written, all or none. By a segmentation network ``labels/NAME.png``, a palette
    picture of the labels (`save_labels`); on request ``probabilities/NAME.npz``, or for one class
    ``probabilities/NAME.png`` (`save_probabilities`); ``overlay/NAME.png``, the labels over the photo
    (`save_overlay`); and ``regions/CLUSTERING/NAME.pt``, the graph of the network's regions of the whole image
    (`save_graph`), one for each of the network's clusterings. By a clusterer ``labels/NAME.png``, the numbers of the
    regions, and the overlay with their borders. By a detector or a classifier the overlay, with boxes or the class,
    and at the end ``predictions.json`` for all images, in COCO's format: boxes, scores and masks as run lengths, or the
    five most probable classes. Files of these names are replaced.

    Args:
        predictor: What predicts; of a `Trained` network of any task. Its batch size says how many images of one size
            go through the network at once.
        paths: Images, and folders of them (not those inside).
        out: Folder for the results, made if missing.
        mean: Red, green and blue of colours in [0, 1]: the network gets ``(x - mean) / std``. None: the predictor's
            preprocessing, as the network was evaluated with.
        std: Likewise.
        palette: Red, green, blue from 0 to 255 of each class; None: the predictor's, or `class_colors`.
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
        ValueError: if a result would be written over an image, an option is out of range or not for this network, or
            nothing says how images are prepared.
        TypeError: if `regions` is asked of a network that has none.
        OSError: if the folder cannot be made or the disk is full: the results so far are whole.

    Note:
        Images of the same name get their folder's name before it, or a number after it. The results do not depend on
        the other images (but for rounding, by which batches of other sizes may differ). Reading, the network and
        writing overlap.

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
    prepare = _preprocessing(predictor, mean, std)
    results = results_of(
        predictor, out, palette=palette, probabilities=probabilities, overlay=overlay, hidden=hidden, regions=regions
    )
    _check_overwriting(images, results.folders)
    for folder in results.folders:
        folder.mkdir(parents=True, exist_ok=True)
    jobs = list(zip(images, unique_names(images), strict=True))
    start = time.perf_counter()
    done: dict[Path, str] = {}
    failed: dict[Path, str] = {}
    with (
        _progress(console or screen(stderr=True), len(images)) as (report, advance),
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(1) as writer,
    ):

        def read(job: tuple[Path, str]) -> Photo:
            return Photo(*job, pixels := load_pixels(job[0], max_pixels=max_pixels), prepare({"image": pixels}))

        def finish(photo: tuple[Path, str], outcome: Callable[[], object]) -> None:
            path, name = photo
            try:
                outcome()
            # what one image can do wrong; a mistake in the program is not hidden, nor a full disk
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise
                text = " ".join(str(error).split()) or type(error).__name__
                failed[path] = text if str(path) in text else f"{path}: {text}"
                report(failed[path])
            else:
                done[path] = name
            advance()

        waiting: deque[tuple[tuple[Path, str], Future[None]]] = deque()
        try:
            for job, photo, found in _predicted(results, jobs, reader, read, predictor.batch_size):
                waiting.append((job, writer.submit(_write, results, photo, found)))
                while len(waiting) > AHEAD * predictor.batch_size:
                    first, written = waiting.popleft()
                    finish(first, written.result)
            while waiting:
                first, written = waiting.popleft()
                finish(first, written.result)
        except BaseException:
            for pool in (reader, writer):
                pool.shutdown(wait=True, cancel_futures=True)
            raise
        results.close([name for path, name in jobs if path in done])
    return FolderPrediction(done, failed, time.perf_counter() - start)


def _predicted(
    results: Results,
    jobs: Sequence[tuple[Path, str]],
    reader: ThreadPoolExecutor,
    read: Callable[[tuple[Path, str]], Photo],
    batch_size: int,
) -> Iterator[tuple[tuple[Path, str], Photo | Exception, Any]]:
    """Yield each image with what the network makes of it, or with what went wrong; read ahead while it works."""
    ahead: deque[tuple[tuple[Path, str], Future[Photo]]] = deque()
    left = iter(jobs)
    batch: list[tuple[tuple[Path, str], Photo]] = []

    def run() -> Iterator[tuple[tuple[Path, str], Photo | Exception, Any]]:
        some, batch[:] = list(batch), []
        try:
            yield from zip(*zip(*some, strict=True), results.predict([photo for _, photo in some]), strict=True)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if len(some) == 1:
                yield some[0][0], error, None
            else:  # the others are not to suffer
                for one in some:
                    batch[:] = [one]
                    yield from run()

    while True:
        while len(ahead) < AHEAD * batch_size and (job := next(left, None)) is not None:
            ahead.append((job, reader.submit(read, job)))
        if not ahead:
            break
        job, future = ahead.popleft()
        try:
            photo = future.result()
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            yield job, error, None
            continue
        if batch and not photo.fits(batch[0][1]):
            yield from run()
        batch.append((job, photo))
        if len(batch) == batch_size:
            yield from run()
    if batch:
        yield from run()


def _write(results: Results, photo: Photo | Exception, found: Any) -> None:
    if isinstance(photo, Exception):
        raise photo
    write_together(results.files(photo, found))


def _preprocessing(
    predictor: Predictor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    if (mean is None) != (std is None):
        raise ValueError("`mean` and `std` must be given together.")
    if mean is not None and std is not None:
        if len(mean) != 3:
            raise ValueError(f"`mean` must be red, green and blue, got {list(mean)}.")
        return EvalTransform(mean=mean, std=std)
    found = predictor.preprocessing
    if found is None:
        raise ValueError(
            "Nothing says how images are prepared for this network: give `mean` and `std`, or save it with its "
            "`preprocessing` (see `save_pretrained`)."
        )
    if len(found.mean) != 3:
        raise ValueError(f"The network takes {len(found.mean)} bands, and photos have 3: give rasters.")
    return found


def _check_overwriting(images: Sequence[Path], folders: Sequence[Path]) -> None:
    """Raise if an image lies where results go."""
    places = {folder.resolve() for folder in folders}
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
            console.print(Text(f"error: {harmless(text)}"), style="red", soft_wrap=True)

        def advance() -> None:
            bar.advance(task)
            rate = bar.tasks[0].completed / (time.perf_counter() - start)
            bar.update(task, speed=f"{rate:.3g} images/s")

        yield report, advance
