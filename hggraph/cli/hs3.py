"""``hggraph hs3``: the step between the two phases of hierarchical supervision."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hggraph._screen import screen
from hggraph.cli._device import device_of

__all__ = ["hs3"]

hs3 = typer.Typer(
    name="hs3",
    help="Hierarchical supervision (HS3): each tap of a network learns as many classes as it can tell apart.",
    no_args_is_help=True,
)


class Method(StrEnum):
    """How classes are grouped."""

    spectral = "spectral"
    kmeans = "kmeans"


class Normalize(StrEnum):
    """What confusion is divided by."""

    none = "none"
    rows = "rows"


class Absent(StrEnum):
    """What to do about classes that do not occur."""

    error = "error"
    own = "own"


@hs3.callback()
def about() -> None:
    """Take more than one command."""


@hs3.command("analyse")
def analyse(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the first phase's run.", show_default=False)],
    *,
    method: Annotated[
        Method, typer.Option(help="Group classes by what is confused, or by k-means on their features.")
    ] = Method.spectral,
    theta: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=90,
            metavar="DEGREES",
            help="Angle of the trade-off: 0 keeps all classes, 90 asks for the output's mean IoU. Without it: equal "
            "mean IoU per class, which is 45.",
            show_default=False,
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Give each tap this share of the next one's classes instead, the last one of the output's: 0.5.",
            show_default=False,
        ),
    ] = None,
    normalize: Annotated[
        Normalize, typer.Option(help="Divide what is confused by the pixels of each class (rows), or not (none).")
    ] = Normalize.rows,
    absent: Annotated[
        Absent, typer.Option(help="Classes without a pixel: an error, or each a group of its own.")
    ] = Absent.error,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where to write; hs3 in the run without.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu or cuda; the CPU without.", show_default=False)
    ] = None,
) -> None:
    """Find the classes that each tap should tell apart, and write the recipe of the second phase.

    hggraph fit --config recipes/camvid_hs3_phase_one.yaml --data.root FOLDER

    hggraph hs3 analyse runs/camvid_hs3_phase_one

    hggraph fit --config runs/camvid_hs3_phase_one/hs3/camvid_hs3_phase_one_hs3.yaml

    Written are groupings.yaml (which classes are merged), trade_off.png and curves.json (accuracy over the number of
    classes), and the recipe. The images that are analysed were neither trained nor validated on.
    """
    from hggraph.engine.hs3 import analyse_run  # Lightning takes seconds

    plan = analyse_run(
        run,
        method=method.value,  # type: ignore[arg-type]  # one of the two
        theta=theta,
        ratio=ratio,
        normalize=normalize.value,  # type: ignore[arg-type]
        absent=absent.value,  # type: ignore[arg-type]
        device=device_of(device, default="cpu"),
        out=out,
    )
    table = Table("tap", "classes", "mean IoU, %", "all classes, %")
    for name, curve in plan.curves.items():
        at = curve.sizes.index(plan.chosen[name])
        table.add_row(name, str(plan.chosen[name]), f"{100 * curve.miou[at]:.1f}", f"{100 * curve.miou[-1]:.1f}")
    table.add_row("out", str(plan.output.sizes[-1]), f"{100 * plan.miou:.1f}", f"{100 * plan.miou:.1f}")
    console = screen()
    console.print(f"{plan.images} images analysed")
    console.print(table)
    console.print(f"The second phase: hggraph fit --config {plan.recipe}")
