"""What becomes of photos in networks of each task, and which files it is written into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hggraph.data.graph_file import save_graph
from hggraph.data.transforms import undo, undo_detections
from hggraph.inference.coco import boxes_picture, class_picture, coco_objects, write_predictions
from hggraph.inference.outputs import (
    Color,
    border_picture,
    check_palette,
    labels_picture,
    overlay_picture,
    probabilities_writer,
)
from hggraph.inference.predictor import Predictor, to_labels

__all__ = ["Photo", "Results", "results_of"]

Write = Callable[[Path], object]
MOST_PROBABLE = 5


class Photo(NamedTuple):
    """An image that was read.

    Args:
        path: Its file.
        name: Of its results.
        pixels: Colours from 0 to 255, ``(3, H, W)``.
        sample: What the network's preprocessing makes of it.
    """

    path: Path
    name: str
    pixels: Tensor
    sample: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width of it in what the network gets, without padding."""
        shown: tuple[int, int] = self.sample.get("shown", self.size)
        return shown

    def fits(self, other: Photo) -> bool:
        """Say whether two photos can go through the network at once."""
        return self.size == other.size and self.sample["image"].shape == other.sample["image"].shape


class Results(ABC):
    """What a network's task makes of photos; `folders` are those that its files go to."""

    def __init__(self, predictor: Predictor, folders: Sequence[Path]) -> None:
        self.predictor = predictor
        self.folders = list(folders)

    @abstractmethod
    def predict(self, photos: Sequence[Photo]) -> Sequence[Any]:
        """Return what the network finds in each of some photos that fit together."""

    @abstractmethod
    def files(self, photo: Photo, found: Any) -> dict[Path, Write]:
        """Return what writes each of a photo's files."""

    def close(self, names: Sequence[str]) -> None:  # noqa: B027  (most have nothing in common)
        """Write what all photos have in common; `names` are those whose files were written, in order."""


class SegmentationResults(Results):
    """Labels, overlays, probabilities and region graphs."""

    def __init__(
        self,
        predictor: Predictor,
        out: Path,
        palette: Sequence[Color] | None,
        probabilities: bool,
        overlay: bool,
        hidden: Sequence[int],
        regions: bool,
    ) -> None:
        kinds = [("labels", True), ("probabilities", probabilities), ("overlay", overlay), ("regions", regions)]
        self.out = {kind: out / kind for kind, wanted in kinds if wanted}
        super().__init__(predictor, list(self.out.values()))
        if palette is not None:
            check_palette(palette, 0)
        if regions:
            predictor.check_regions()
        self.palette, self.hidden = palette, hidden

    def predict(self, photos: Sequence[Photo]) -> Sequence[Any]:
        """Return probabilities, labels and graphs."""
        x, (first, *_) = torch.stack([photo.sample["image"] for photo in photos]), photos
        found = self.predictor(x, undo=lambda maps: undo(maps, first.shown, first.size)).cpu()
        graphs: list[dict[str, Any]] = [{} for _ in photos]
        if "regions" in self.out:
            for clustering in self.predictor.regions(x):
                for i, one in enumerate(graphs):
                    one[clustering.name] = clustering.graph[i].cpu()
        kept = found if "probabilities" in self.out else [None] * len(photos)
        return list(zip(kept, to_labels(found), [max(found.shape[1], 2)] * len(photos), graphs, strict=True))

    def files(self, photo: Photo, found: Any) -> dict[Path, Write]:
        """Return what writes labels and what else was asked for."""
        probabilities, labels, classes, graphs = found
        out: dict[Path, Write] = {}
        picture = labels_picture(labels, self.palette, num_classes=classes)
        out[self.out["labels"] / f"{photo.name}.png"] = picture.save
        if probabilities is not None:
            suffix = ".png" if len(probabilities) == 1 else ".npz"
            out[self.out["probabilities"] / f"{photo.name}{suffix}"] = probabilities_writer(probabilities, suffix)
        if "overlay" in self.out:
            drawn = overlay_picture(photo.pixels, labels, self.palette, hidden=self.hidden)
            out[self.out["overlay"] / f"{photo.name}.png"] = _quick(drawn)
        for name, graph in graphs.items():
            folder = self.out["regions"] / name
            folder.mkdir(exist_ok=True)
            out[folder / f"{photo.name}.pt"] = lambda path, graph=graph: save_graph(graph, path)  # type: ignore[misc]
        return out


class RegionResults(Results):
    """Numbers of regions, and their borders."""

    def __init__(self, predictor: Predictor, out: Path, overlay: bool) -> None:
        self.out = {kind: out / kind for kind, wanted in (("labels", True), ("overlay", overlay)) if wanted}
        super().__init__(predictor, list(self.out.values()))

    def predict(self, photos: Sequence[Photo]) -> Sequence[Any]:
        """Return the numbers of the regions at the photos' own size: of each pixel the nearest's."""
        found = self.predictor.run(torch.stack([photo.sample["image"] for photo in photos])).labels
        shown, size = photos[0].shown, photos[0].size
        rows, columns = (
            ((torch.arange(own) + 0.5) * (there / own)).long().to(found.device)
            for there, own in zip(shown, size, strict=True)
        )
        return list(found[:, rows[:, None], columns].cpu())

    def files(self, photo: Photo, found: Any) -> dict[Path, Write]:
        """Return what writes the map and its picture."""
        picture = labels_picture(found, num_classes=max(257, int(found.max()) + 1))
        out: dict[Path, Write] = {self.out["labels"] / f"{photo.name}.png": picture.save}
        if "overlay" in self.out:
            out[self.out["overlay"] / f"{photo.name}.png"] = _quick(border_picture(photo.pixels, found))
        return out


class CocoResults(Results):
    """Boxes, masks and classes: a picture each, and one file in COCO's format for all."""

    def __init__(self, predictor: Predictor, out: Path, palette: Sequence[Color] | None, overlay: bool) -> None:
        super().__init__(predictor, [out, out / "overlay"] if overlay else [out])
        self.file, self.overlay, self.palette = out / "predictions.json", overlay, palette
        self.first = 1 if predictor.task == "detection" else 0  # a detector's class 0 is the background
        self.entries: dict[str, tuple[Photo, list[dict[str, Any]]]] = {}

    def predict(self, photos: Sequence[Photo]) -> Sequence[Any]:
        """Return detections, or probabilities of classes."""
        images = [photo.sample["image"] for photo in photos]
        if self.predictor.task == "detection":
            found = [{key: one.cpu() for key, one in each.items()} for each in self.predictor.run(images)]
            return [undo_detections(one, photo.shown, photo.size) for one, photo in zip(found, photos, strict=True)]
        x = torch.stack(images)
        views = x.shape[1] if x.dim() == 5 else 1
        logits = self.predictor.run(x.flatten(0, 1) if x.dim() == 5 else x)
        return list(logits.float().softmax(1).unflatten(0, (len(photos), views)).mean(1).cpu())

    def files(self, photo: Photo, found: Any) -> dict[Path, Write]:
        """Return what writes the picture; what goes into the common file is kept."""
        if isinstance(found, Tensor):
            top = found.topk(min(MOST_PROBABLE, len(found)))
            entries = [
                {"category_id": label, "score": score}
                for label, score in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
            picture = class_picture(photo.pixels, entries, self.predictor.classes)
        else:
            entries = coco_objects(found)
            picture = boxes_picture(photo.pixels, found, self.predictor.classes, self.palette)
        self.entries[photo.name] = photo._replace(sample={}), entries
        return {self.file.parent / "overlay" / f"{photo.name}.png": _quick(picture)} if self.overlay else {}

    def close(self, names: Sequence[str]) -> None:
        """Write the common file."""
        images = [(photo.path.name, *photo.size, entries) for photo, entries in (self.entries[name] for name in names)]
        write_predictions(self.file, images, self.predictor.classes, self.first)


def results_of(
    predictor: Predictor,
    out: Path,
    *,
    palette: Sequence[Color] | None,
    probabilities: bool,
    overlay: bool,
    hidden: Sequence[int],
    regions: bool,
) -> Results:
    """Return what becomes of photos in a predictor's network.

    Raises:
        ValueError: if something is asked for that such networks have not.
        TypeError: if `regions` is asked of a segmentation network that has none.
    """
    colors = palette if palette is not None else predictor.palette or None
    if predictor.task == "segmentation":
        return SegmentationResults(predictor, out, colors, probabilities, overlay, hidden, regions)
    for name, wanted in (("probabilities", probabilities), ("regions", regions)):
        if wanted:
            raise ValueError(f"`{name}` are for segmentation networks; this one is for {predictor.task}.")
    if predictor.task == "regions":
        return RegionResults(predictor, out, overlay)
    return CocoResults(predictor, out, colors, overlay)


def _quick(picture: Any) -> Write:
    """Return what writes a picture as PNG with little compression: photos gain next to nothing by more."""
    return lambda path: picture.save(path, compress_level=1)
