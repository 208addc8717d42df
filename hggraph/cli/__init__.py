"""The commands of ``hggraph``: graphs, training, prediction, counting, measuring."""

from __future__ import annotations

from typing import Annotated

import typer

import hggraph._pyg  # first: it silences one warning
from hggraph._screen import screen
from hggraph.cli._errors import TRACEBACK, Commands
from hggraph.cli.bench import run_benchmarks
from hggraph.cli.count import count_operations
from hggraph.cli.graph import make_graphs
from hggraph.cli.hs3 import hs3
from hggraph.cli.info import show_info
from hggraph.cli.inspect import inspect_network
from hggraph.cli.predict import predict
from hggraph.cli.publish import publish_run
from hggraph.cli.train import PASS_ON, fit, test, validate

__all__ = ["app"]

app = typer.Typer(
    name="hggraph",
    cls=Commands,
    epilog=f"{TRACEBACK}=1 in the environment shows where an error arose.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        screen().print(f"hggraph {hggraph.__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Turn images into graphs of regions, train networks on them, and see what this installation can do."""


app.command("graph")(make_graphs)
app.command("fit", context_settings=PASS_ON)(fit)
app.command("validate", context_settings=PASS_ON)(validate)
app.command("test", context_settings=PASS_ON)(test)
app.command("predict")(predict)
app.command("inspect")(inspect_network)
app.add_typer(hs3)
app.command("publish")(publish_run)
app.command("count")(count_operations)
app.command("info")(show_info)
app.command("bench")(run_benchmarks)
