"""The error of image files."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ImageError", "image_error"]


class ImageError(ValueError):
    """An image file cannot be used; the text names it and says what to do."""


def image_error(path: str | Path, expected: str, got: str, todo: str) -> ImageError:
    """Return an error that says what was expected of a file, what it is, and what to do."""
    return ImageError(f"{path}: expected {expected}, got {got}; {todo}.")
