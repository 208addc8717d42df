"""The commands of ``hggraph``: graphs, training, prediction, counting, measuring."""

from __future__ import annotations

import typer

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
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
    help="Turn images into graphs of regions, and see what this installation can do.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
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
