"""``hggraph count``: parameters and operations of a network, part by part."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import nn

from hggraph._files import write_atomically
from hggraph._screen import screen
from hggraph.cli._model import SHORT_NAMES, make_model
from hggraph.cluster import SoftSLIC
from hggraph.models.count import Part, count

__all__ = ["count_operations"]

_MODEL_HELP = "A name, such as " + ", ".join(SHORT_NAMES) + ", or a call: hg_resnet(101, variant='dcn')."


def count_operations(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=_MODEL_HELP, show_default=False),
    ],
    *,
    size: Annotated[tuple[int, int], typer.Option(metavar="H W", min=1, help="Image size in pixels.")] = (713, 713),
    classes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of classes.", show_default=False)
    ] = None,
    downsample: Annotated[
        float | None,
        typer.Option(metavar="N", min=1, help="Pixels of the map to a region.", show_default=False),
    ] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Count the folded form for inference.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Leave out clustering, pooling and adjacency, as HG-Conv's tables do.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the counts there too.")
    ] = None,
) -> None:
    """Print parameters, multiply-adds and FLOPs of a network for one image, part by part.

    With everything that regions cost: clustering, pooling, adjacency, unpooling. Names without hg_ are the dense
    networks. Auxiliary heads, which only training runs, are not counted.
    """
    more: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if downsample is not None:
        more["clusterer"] = SoftSLIC(downsample)
    net = make_model(model, more).eval()
    net = _for_inference(net, fold=fold)
    parts = count(net, size, paper=paper, image=_photo(size))
    _show(parts, f"{model}{', folded' if fold else ''}, {size[0]} x {size[1]} pixels")
    if json is not None:
        rows = [part._asdict() | {"flops": part.flops} for part in parts]
        write_atomically(json, lambda path: path.write_text(json_format.dumps(rows, indent=1), encoding="utf-8"))


def _for_inference(net: Any, *, fold: bool) -> nn.Module:
    if fold:
        folded: nn.Module = net.fold()
        return folded
    net.drop_training_parts()
    inference: nn.Module = net
    return inference


def _photo(size: tuple[int, int]) -> torch.Tensor:
    """Return a photo, on which operations may depend."""
    from hggraph.data import sample_photo

    photo = sample_photo()[None]
    return torch.nn.functional.interpolate(photo - photo.mean(), size, mode="bilinear", antialias=True)


def _show(parts: list[Part], title: str) -> None:
    table = Table()
    table.add_column("part")
    for column in ("parameters", "multiply-adds, G", "FLOPs, G", "share"):
        table.add_column(column, justify="right")
    total = parts[-1]
    for part in parts:
        last = part is total
        table.add_row(
            part.name,
            f"{part.parameters:,}",
            f"{part.macs / 1e9:,.3f}",
            f"{part.flops / 1e9:,.3f}",
            f"{part.macs / max(1, total.macs):.1%}",
            style="bold" if last else None,
        )
    console = screen()
    console.print(title, style="bold")
    console.print(table)
