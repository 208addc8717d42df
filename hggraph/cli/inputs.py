"""What a command is to work on: which images, which attention maps, which names for the results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from hggraph._files import unique_names
from hggraph.data import ImageError, list_images

__all__ = ["Job", "plan_jobs"]

SAMPLE = "china"


@dataclass(frozen=True)
class Job:
    """One image to work on.

    Args:
        name: Name of the results, without a suffix.
        image: The image, or None for the sample photo.
        attention: Its attention map, or None.
    """

    name: str
    image: Path | None = None
    attention: Path | None = None

    @property
    def label(self) -> str:
        """What to call the image in a table."""
        return f"sample photo {SAMPLE!r}" if self.image is None else self.image.name


def plan_jobs(paths: list[Path], out: Path, endings: list[str], attention: Path | None) -> list[Job]:
    """Find the images and name their results, before anything is computed.

    Args:
        paths: Images and folders; none stands for the sample photo.
        out: Folder of the results.
        endings: Suffixes of the results, ``.pt`` for example.
        attention: A map for every image, or a folder with one map per image.

    Returns:
        One job per image, each with a name of its own.

    Raises:
        typer.BadParameter: if a path does not exist, a folder has no image, a map is missing, or a
            result would be written over an image or a map.
    """
    try:
        images = list_images(paths)
        maps = list_images([attention]) if attention is not None else []
    except ImageError as error:
        raise typer.BadParameter(str(error)) from error
    if not paths:
        jobs = [Job(SAMPLE)]
    else:
        jobs = [Job(name, image) for name, image in zip(unique_names(images), images, strict=True)]
    if attention is not None:
        jobs = [Job(job.name, job.image, _map_for(job, attention, maps)) for job in jobs]
    inputs = {path.resolve(): path for path in [*images, *maps]}
    for job in jobs:
        for ending in endings:
            overwritten = inputs.get((out / f"{job.name}{ending}").resolve())
            if overwritten is not None:
                raise typer.BadParameter(f"the results would be written over {overwritten}; choose another --out.")
    return jobs


def _map_for(job: Job, attention: Path, maps: list[Path]) -> Path:
    if not attention.is_dir():
        return attention
    stem = SAMPLE if job.image is None else job.image.stem
    for path in maps:
        if path.stem == stem:
            return path
    raise typer.BadParameter(f"--attention {attention} has no map for {job.label} ({stem}.png).")
