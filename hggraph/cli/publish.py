"""``hggraph publish``: a trained network as safetensors with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hggraph._screen import screen

__all__ = ["publish_run"]


def publish_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of `hggraph fit`.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the four files.")],
    *,
    description: Annotated[str, typer.Option(metavar="TEXT", help="A paragraph for the card.")] = "",
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence of the weights, for example cc-by-4.0.")
    ] = None,
) -> None:
    """Write the best network of a run as safetensors, with its configuration and a model card.

    The card's figures are those that `hggraph validate` and `test` have measured of these weights: evaluate first. The
    folder is what hggraph.models.from_pretrained and `hggraph predict --model` take. Nothing in RUN is imported or run.
    """
    from hggraph.models.pretrained import publish

    publish(run, out, description=description, license_id=license_id)
    screen().print(f"Published: {out}")
