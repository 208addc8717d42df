"""From files of masks to classes, by numbers, colours or brightness, and errors that say which files are wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hggraph.data._decode import check_lossless
from hggraph.data.image import image_size, load_brightness, load_labels, load_pixels
from hggraph.data.palettes import Color

__all__ = [
    "IGNORE",
    "BrightnessReader",
    "ColorReader",
    "DatasetError",
    "LabelReader",
    "MaskReader",
    "raise_problems",
    "some_of",
]

IGNORE = 255
_SHOWN = 10  # problems that an error names


class DatasetError(ValueError):
    """A data set cannot be used as it lies there; the text says what is wrong with which files."""


class MaskReader(ABC):
    """Reads the mask of an image: a class for each pixel, or 255 where none counts."""

    @abstractmethod
    def __call__(self, path: Path) -> NDArray[np.uint8] | NDArray[np.int32]:
        """Return the classes, shape ``(H, W)``; raise `ImageError` or `DatasetError`, which name the file."""

    def size(self, path: Path) -> tuple[int, int]:
        """Return height and width, without decoding where the format allows it."""
        return image_size(path)


class LabelReader(MaskReader):
    """Reads masks whose pixels are whole numbers, of any depth, or indices of a palette; see `load_labels`.

    Args:
        table: Number in the file -> class, or 255 for pixels that do not count. A number without an entry is an error.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.array([[0, 7, 11]], dtype=np.uint8)).save(f"{folder}/mask.png")
        ...     LabelReader({0: 255, 7: 0, 11: 1})(Path(folder, "mask.png")).tolist()
        [[255, 0, 1]]
    """

    def __init__(self, table: Mapping[int, int]) -> None:
        self.table = dict(table)
        self._classes = np.full(max(self.table) + 2, -1, dtype=np.int16)  # the last: every larger number
        self._classes[list(self.table)] = list(self.table.values())
        self._known = bytes(sorted(number for number in self.table if number < 256))
        self._bytes = bytes(self.table.get(number, IGNORE) for number in range(256))

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Return the classes of a label image."""
        return self.classes(load_labels(path), path)

    def classes(self, labels: NDArray[np.integer], path: Path) -> NDArray[np.uint8]:
        """Return the classes of numbers read from a file.

        Raises:
            DatasetError: if a number has none; the text names the file, the numbers and how many pixels have them.
        """
        if labels.dtype == np.uint8 and not (data := labels.tobytes()).translate(None, self._known):
            # three times faster than indexing, which makes 8-byte indices first
            return np.frombuffer(bytearray(data.translate(self._bytes)), np.uint8).reshape(labels.shape)
        last = len(self._classes) - 1
        classes = self._classes[labels if labels.max(initial=0) <= last else np.minimum(labels, last)]
        if classes.min(initial=0) < 0:
            wrong = classes < 0
            found = some_of([str(label) for label in np.unique(labels[wrong])])
            raise DatasetError(
                f"{path}: {int(wrong.sum()):,} pixels labelled outside the classes: {found}; expected "
                f"{_ranges(sorted(self.table))}."
            )
        return classes.astype(np.uint8)


class ColorReader(MaskReader):
    """Reads masks whose pixels are the colours of classes, of files whose compression changes no colours.

    Args:
        table: Colour -> class, or 255 for pixels that do not count.
        tolerance: Share of an image's pixels that may have other colours, which then do not count (255).
    """

    def __init__(self, table: Mapping[Color, int], *, tolerance: float = 0.0) -> None:
        self.table = dict(table)
        self.tolerance = tolerance
        codes = np.array([_code(np.array(color)) for color in self.table], dtype=np.int32)
        order = np.argsort(codes)
        self._codes = codes[order]
        self._classes = np.array(list(self.table.values()), dtype=np.uint8)[order]

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Return the classes of an image in colours."""
        check_lossless(path)
        codes = _code(load_pixels(path).permute(1, 2, 0).numpy())
        at = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        wrong = self._codes[at] != codes
        if wrong.mean() > self.tolerance:
            found = some_of(
                [str((code >> 16, code >> 8 & 255, code & 255)) for code in np.unique(codes[wrong]).tolist()]
            )
            raise DatasetError(
                f"{path}: {int(wrong.sum()):,} pixels in colours of no class: {found}; expected the "
                f"{len(self.table)} colours of the classes."
            )
        return np.where(wrong, np.uint8(IGNORE), self._classes[at])


class BrightnessReader(MaskReader):
    """Reads masks in black and white: class 1 from half of white on, else 0.

    Args:
        faintest: Least brightness, in [0, 1], that the brightest pixel of a mask has where it is not all black. A
            darker mask holds numbers or colours, which would all count as black, and is refused.
    """

    def __init__(self, faintest: float = 0.5) -> None:
        self.faintest = faintest

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Return 0 where a picture is dark, 1 where it is bright."""
        brightness = load_brightness(path).numpy()
        brightest = float(brightness.max(initial=0))
        if 0 < brightest < self.faintest:
            raise DatasetError(
                f"{path}: expected black and white, got nothing brighter than {brightest:.2g} of white, which would "
                "all count as black; store masks as 0 and 255, or read them as labels or colours."
            )
        return (brightness >= 0.5).astype(np.uint8)


def raise_problems(where: str, problems: Sequence[str]) -> None:
    """Raise a `DatasetError` that names the first 10 problems and their number, if there are any."""
    if problems:
        _raise(where, problems)


def _raise(where: str, problems: Sequence[str]) -> NoReturn:
    count = f"{len(problems):,} problem{'s' if len(problems) > 1 else ''}"
    shown = [f"  {problem}" for problem in problems[:_SHOWN]]
    rest = [f"  ... and {len(problems) - _SHOWN:,} more"] if len(problems) > _SHOWN else []
    raise DatasetError("\n".join([f"{where} has {count}:", *shown, *rest]))


def _code(colors: NDArray[Any]) -> NDArray[np.int32]:
    """Return colours ``(..., 3)`` as numbers."""
    wide = colors.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def some_of(words: Sequence[str]) -> str:
    """Return the first five words, and how many more there are."""
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


def _ranges(numbers: Sequence[int]) -> str:
    """Return ``0 to 11, 255`` for sorted numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return some_of([" to ".join(str(end) for end in run) for run in runs])
