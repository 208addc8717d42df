"""How folders of a data set are listed, and what is said when they lie in another way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from hggraph.data.image import SUFFIXES
from hggraph.data.mask_reader import DatasetError

__all__ = ["by_name", "check_split", "class_names", "files_in", "layout_error", "pair", "read_list"]


def class_names(name: str, root: Path, split: str | None, layout: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the class folders of all splits, those of ``root/train`` where there is one, and those of this split.

    Raises:
        DatasetError: if there are none, or this split has one that ``root/train`` lacks.
    """
    base = root / (split or "")
    here = _folders(base)
    if not here:
        raise layout_error(name, base, layout)
    known = _folders(root / "train") if split else here
    missing = sorted(set(here) - set(known))
    if known and missing:
        raise DatasetError(f"{name}: {base} has classes that {root / 'train'} has not: {', '.join(missing[:10])}.")
    return tuple(known or here), here


def files_in(folder: Path, suffixes: Sequence[str] = SUFFIXES, *, deep: bool = False) -> list[Path]:
    """Return the files of a folder with one of the suffixes, sorted, without hidden ones.

    Args:
        folder: Nothing is found in a folder that does not exist.
        suffixes: In lower case, with the dot.
        deep: Look into the folders inside too.
    """
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(
        path
        for path in found
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def by_name(paths: Iterable[Path], folder: Path, end: str = "") -> dict[str, Path]:
    """Return files by their path in a folder, without suffix and `end`; those with another end are left out.

    Raises:
        DatasetError: if two have one name, such as ``a.jpg`` and ``a.png``: it is not said which is meant.

    Example:
        >>> by_name([Path("masks/a_L.png"), Path("masks/a.png")], Path("masks"), "_L")
        {'a': PosixPath('masks/a_L.png')}
    """
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem.endswith(end) and path.stem != end:
            name = path.relative_to(folder).with_name(path.stem.removesuffix(end)).as_posix()
            if name in named:
                raise DatasetError(f"{path} and {named[name].name} have one name; which is meant? Remove one of them.")
            named[name] = path
    return named


def read_list(path: Path) -> list[str]:
    """Return the lines of a text file, without those that are blank.

    Raises:
        DatasetError: if it cannot be read or has no lines.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: expected a list of names, one in a line, got {error}.") from error
    lines = [line for line in lines if line]
    if not lines:
        raise DatasetError(f"{path}: expected a list of names, one in a line, got an empty file.")
    return lines


def pair(
    images: Mapping[str, Path], masks: Mapping[str, Path], default: Callable[[str], Path]
) -> tuple[list[tuple[Path, Path | None]], list[Path]]:
    """Return images with their masks, and masks without an image.

    Args:
        images: Name -> image, in the order wanted.
        masks: Name -> mask.
        default: Says for a name where its missing mask should lie.

    Example:
        >>> pair({"a": Path("a.jpg")}, {"b": Path("b.png")}, lambda name: Path(f"{name}.png"))
        ([(PosixPath('a.jpg'), PosixPath('a.png'))], [PosixPath('b.png')])
    """
    pairs: list[tuple[Path, Path | None]] = [
        (path, masks[name] if name in masks else default(name)) for name, path in images.items()
    ]
    return pairs, [path for name, path in masks.items() if name not in images]


def check_split(name: str, split: str, splits: list[str]) -> None:
    """Raise a `DatasetError` unless a data set has a split."""
    if split not in splits:
        raise DatasetError(f"{name}: expected a split of {', '.join(splits)}, got {split!r}.")


def layout_error(name: str, root: Path, layout: str) -> DatasetError:
    """Return an error that shows the folders expected and those found."""
    if not root.is_dir():
        found = f"  {'a file' if root.exists() else 'nothing: the folder does not exist'}"
    else:
        listed = [f"{path.relative_to(root)}{'/' if path.is_dir() else ''}" for path in islice(_shallow(root), 16)]
        found = "\n".join(f"  {line}" for line in listed[:15]) or "  an empty folder"
        found += "\n  ..." if len(listed) > 15 else ""
    return DatasetError(f"{name}: {root} has another layout.\nExpected in it:\n{_indent(layout)}\nFound:\n{found}")


def _shallow(root: Path) -> Iterable[Path]:
    """Yield what lies in a folder and in the folders in it, four of each."""
    for path in sorted(root.iterdir()):
        yield path
        if path.is_dir():
            yield from islice(sorted(path.iterdir()), 4)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip("\n").splitlines())


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
