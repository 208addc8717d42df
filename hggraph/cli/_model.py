"""A network as one writes it in Python, ``hg_resnet(101, variant="dcn")``, or by a short name, ``hg_resnet101``."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SHORT_NAMES", "make_model"]

SHORT_NAMES = ("hg_resnet101", "resnet101", "hg_resunet18", "resunet50", "hg_hrnet_w48", "hrnet_w48", "gald")


def make_model(text: str, more: dict[str, Any]) -> nn.Module:
    """Make the network that `text` names.

    Args:
        text: A call with literal arguments, or a name with a depth or width at its end; without ``hg_`` the dense
            network.
        more: Further arguments, which win over those in `text`; what the network does not take is an error.

    Raises:
        typer.BadParameter: if there is no such network or it does not take these arguments.
    """
    from hggraph.models.makers import MAKERS

    name, args, kwargs = _parse(text.strip())
    if name not in MAKERS:
        near = difflib.get_close_matches(text, [*MAKERS, *SHORT_NAMES], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(MAKERS)}"
        raise typer.BadParameter(f"there is no network {text!r}; {hint}")
    maker = MAKERS[name]
    unknown = sorted({*kwargs, *more} - inspect.signature(maker).parameters.keys())
    if unknown:
        takes = ", ".join(inspect.signature(maker).parameters)
        raise typer.BadParameter(f"{name} takes no {', '.join(unknown)}; it takes {takes}")
    try:
        return maker(*args, **(kwargs | more))
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise typer.BadParameter(f"{text}: {error}") from error


def _parse(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    short = re.fullmatch(r"(hg_)?(resnet|resunet|hrnet|orientation)_?(\d+|w\d+\w*)?", text)
    if short is not None:
        dense, family, which = short[1] is None, short[2], short[3]
        args = [] if which is None else [int(which) if which.isdigit() else which]
        without: dict[str, Any] = {"hg_stages": ()} if family == "resnet" else {"hg": False}
        return f"hg_{family}", args, without if dense else {}
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            values = [ast.literal_eval(value) for value in call.args]
            named = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None}
            return call.func.id, values, named
    except (SyntaxError, ValueError) as error:
        raise typer.BadParameter(
            f"{text!r} is neither a name such as hg_resnet101 nor a call with literal arguments such as "
            f"'hg_resnet(101, variant=\"dcn\")'"
        ) from error
    return text, [], {}
