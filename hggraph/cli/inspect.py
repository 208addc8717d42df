"""``hggraph inspect``: pictures of what a trained network does to images, and of where it is wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.progress import track
from torch import Tensor

from hggraph._files import NO_ROOM
from hggraph._screen import harmless, one_line, screen
from hggraph.cli._device import device_of
from hggraph.cli.inputs import Job, plan_jobs
from hggraph.data import list_images, load_labels, load_pixels
from hggraph.viz import affinity_figure, error_figure, mask_figure, save_figure, unity_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hggraph.inference.trained import Trained
    from hggraph.metrics import LevelIoU

__all__ = ["inspect_network"]

Point = tuple[float, float]


def inspect_network(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="Folder of a run of `hggraph fit`, or what `hggraph publish` wrote.",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE|FOLDER", exists=True, help="Images and folders of them.", show_default=False),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="Folder for the pictures.")],
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y",
            help="A pixel whose neighbours are drawn, from the left and from the top: --point 160,120. More than one "
            "can be given; without any there are four, in the middles of the quarters.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder with the true labels of each image, a number per pixel, in a file of the same name up to the "
            "suffix: draw the errors too.",
            show_default=False,
        ),
    ] = None,
    ignore: Annotated[int, typer.Option(metavar="N", min=0, help="The label of pixels that do not count.")] = 255,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu or cuda; the best without.", show_default=False)
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import and run what a folder of your own names that hggraph does not know.")
    ] = False,
) -> None:
    """Draw what a network's local distribution or pyramid does to images, and where a network is wrong.

    Of an image NAME.jpg these are written into --out: of a GALD network NAME_affinity.png, how much chosen pixels read
    from each of their neighbours (distribution v2), or NAME_mask.png, the mean of the masks (v1); of a network of
    specialize_fuse NAME_unity.png, its unity pyramid and which level decides each pixel; and with --labels
    NAME_errors.png, the wrong pixels in red, for which any network will do. Files of these names are replaced. With
    --labels a pyramid's mean IoU is printed too, of each level on the pixels that each level decides, and what each
    class loses where one level decides everything.

    An image that cannot be used is reported and skipped, and the exit code is 1.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter('matplotlib is not installed; pictures need it: pip install "hggraph[viz]".')
    points = [_point(text) for text in point or ()]
    place, trained = device_of(device), _load(network, trust)
    draws = _drawing(trained.net, points)
    if not draws and labels is None:
        raise typer.BadParameter(
            f"{network} is a {type(trained.net).__name__} without a local distribution or a pyramid to look at. Give "
            "--labels to see its errors, or a network of hggraph.models.gald with distribution='v1' or 'v2', or of "
            "specialize_fuse."
        )
    if points and "affinity" not in draws:
        raise typer.BadParameter("--point is for networks with distribution='v2', and this one has none.")
    endings = [f"_{kind}.png" for kind in (*draws, *(["errors"] if labels else []))]
    jobs = plan_jobs(images, out, endings, None)
    targets = [None] * len(jobs) if labels is None else _label_files(jobs, labels, out)
    out.mkdir(parents=True, exist_ok=True)
    levels = _level_metric(trained.net, ignore) if labels is not None else None
    convert = _converter(trained, draws, out, ignore, place, levels)
    console, failed = screen(stderr=True), 0
    pairs = list(zip(jobs, targets, strict=True))
    for job, target in track(pairs, "drawing", console=console, transient=True, disable=not console.is_terminal):
        try:
            convert(job, target)
        # what one image can do wrong; a mistake in the program is not hidden, nor a full disk
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            failed += 1
            text = one_line(error)
            named = harmless(str(job.image)) in text or harmless(str(target)) in text
            console.print(f"error: {text if named else f'{job.image}: {text}'}", style="red")
    if levels is not None and failed < len(jobs):
        names = trained.classes if len(trained.classes) == levels.num_classes else None
        screen().print(levels.table(), levels.class_table(names))
    console.print(f"{len(jobs) - failed} of {len(jobs)} images: {out}")
    if failed:
        raise typer.Exit(1)


def _load(network: str, trust: bool) -> Trained:
    from hggraph.inference import load_trained

    trained = load_trained(network, trust=trust)
    if trained.task != "segmentation" or trained.preprocessing is None:
        what = "does not say how images are prepared" if trained.preprocessing is None else f"is for {trained.task}"
        raise typer.BadParameter(f"{network} {what}; what is drawn is of segmentation networks that say it.")
    return trained


def _point(text: str) -> Point:
    """Return (y, x) of ``X,Y``."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--point must be X,Y in pixels, for example 160,120, got {text!r}.") from error
    return y, x


def _drawing(net: Any, points: list[Point]) -> dict[str, Callable[[Tensor, Any], Figure]]:
    """Return what draws what a network does, by its name: from a photo and what `inspect` returns of it."""
    from hggraph.models.gald import GALD
    from hggraph.models.specialize_fuse import SpecializeFuse
    from hggraph.nn import LocalDistributionV2

    if isinstance(net, SpecializeFuse) and len(net.strides) > 1:
        return {"unity": lambda image, found: unity_figure(image, found.unity, net.threshold)}
    if not isinstance(net, GALD) or net.distribution is None:
        return {}
    if not isinstance(net.distribution, LocalDistributionV2):
        return {"mask": mask_figure}
    stencil = net.distribution.attention.stencil

    def draw(image: Tensor, affinity: Tensor) -> Figure:
        return affinity_figure(image, affinity, points or _spread(image), stencil)

    return {"affinity": draw}


def _level_metric(net: Any, ignore: int) -> LevelIoU | None:
    """Return what counts the levels of a pyramid; None for networks without one."""
    from hggraph.metrics import LevelIoU
    from hggraph.models.specialize_fuse import SpecializeFuse

    if not isinstance(net, SpecializeFuse) or len(net.strides) == 1:
        return None
    return LevelIoU(net.num_classes, len(net.strides), ignore)


def _spread(image: Tensor) -> list[Point]:
    """Return the middles (y, x) of an image's quarters."""
    rows, columns = ([round(share * (side - 1)) for share in (0.25, 0.75)] for side in image.shape[1:])
    return list(product(rows, columns))


def _label_files(jobs: list[Job], labels: Path, out: Path) -> list[Path]:
    """Return the label file of each image, before anything is computed."""
    found = list_images([labels])
    written = {(out / f"{job.name}_errors.png").resolve() for job in jobs}
    for path in found:
        if path.resolve() in written:
            raise typer.BadParameter(f"the results would be written over {path}; choose another --out.")
    by_stem = {path.stem: path for path in found}
    images = [job.image for job in jobs if job.image is not None]
    missing = [path for path in images if path.stem not in by_stem]
    if missing:
        raise typer.BadParameter(f"--labels {labels} has no labels for {missing[0].name} ({missing[0].stem}.png).")
    return [by_stem[path.stem] for path in images]


def _converter(
    trained: Trained,
    draws: dict[str, Callable[[Tensor, Any], Figure]],
    out: Path,
    ignore: int,
    device: torch.device,
    levels: LevelIoU | None,
) -> Callable[[Job, Path | None], None]:
    """Return what draws and writes the pictures of one image."""
    from hggraph.data.transforms import undo
    from hggraph.inference.predictor import Predictor, to_labels

    net: Any = trained.net
    predictor, prepare = Predictor(net, device=device), trained.preprocessing
    assert prepare is not None

    def convert(job: Job, labels: Path | None) -> None:
        assert job.image is not None
        pixels = load_pixels(job.image)
        sample, image = prepare({"image": pixels}), pixels.float() / 255
        x, own = sample["image"][None], (image.shape[1], image.shape[2])
        found: Any = net.inspect(x.to(device))[0] if draws else None
        seen = undo(image, own, sample["shown"])  # the photo as the network gets it
        figures = {kind: draw(seen, found) for kind, draw in draws.items()}
        if labels is not None:
            probabilities = predictor(x, undo=lambda maps: undo(maps, sample["shown"], own))
            target = _targets(labels, own, max(probabilities.shape[1], 2), ignore)
            predicted = to_labels(probabilities)[0]
            figures["errors"] = error_figure([image], [target], [predicted], names=[job.name], ignore_index=ignore)
            if levels is not None:
                predictions, decided = found.at_pixels(net.threshold, own)
                levels.update(predictions, decided, target[None])
        for kind, figure in figures.items():  # once all are drawn
            save_figure(figure, out / f"{job.name}_{kind}.png")

    return convert


def _targets(path: Path, size: tuple[int, int], num_classes: int, ignore: int) -> Tensor:
    """Return true labels, shape ``(H, W)``; raise a ValueError if they cannot belong to the image or the network."""
    labels = torch.from_numpy(load_labels(path).astype("int64"))
    if tuple(labels.shape) != size:
        got = f"{labels.shape[1]} x {labels.shape[0]}"
        raise ValueError(
            f"{path}: expected labels of the image's size, {size[1]} x {size[0]} pixels, got {got}; give those of this "
            f"image."
        )
    strange = labels[(labels >= num_classes) & (labels != ignore)].unique()
    if len(strange):
        raise ValueError(
            f"{path}: expected labels from 0 to {num_classes - 1}, and {ignore} for pixels that do not count, got "
            f"{', '.join(map(str, strange[:5].tolist()))}{', ...' if len(strange) > 5 else ''}; name the label that "
            f"does not count with --ignore, or give labels of this network's classes."
        )
    return labels
