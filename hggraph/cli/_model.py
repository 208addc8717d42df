"""A network as one writes it in Python, ``hg_resnet(101, variant="dcn")``, or by a short name, ``hg_resnet101``.

And what the networks and their options are, read off their signatures and docstrings.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from hggraph.models.makers import Maker

__all__ = ["SHORT_NAMES", "make_model", "network_help", "networks"]

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
    name, args, kwargs = _parse(text.strip())
    maker = _maker(name, text)
    unknown = sorted({*kwargs, *more} - inspect.signature(maker).parameters.keys())
    if unknown:
        takes = ", ".join(inspect.signature(maker).parameters)
        raise typer.BadParameter(f"{name} takes no {', '.join(unknown)}; it takes {takes}")
    try:
        return maker(*args, **(kwargs | more))
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise typer.BadParameter(f"{text}: {error}") from error


def networks() -> dict[str, str]:
    """Return what each network is, in a line, by its name."""
    from hggraph.models.makers import MAKERS

    return {name: (inspect.getdoc(maker) or "").partition("\n")[0] for name, maker in MAKERS.items()}


def network_help(text: str) -> list[str]:
    r"""Return the lines that say what a network is and takes: name, type, default and meaning of each option.

    Args:
        text: As for `make_model`; its arguments do not matter.

    Raises:
        typer.BadParameter: if there is no such network.

    Example:
        >>> print("\n".join(network_help("hg_resnet")[2:4]))
          depth: int | str = 50
              18, 34, 50, 101 or 152; or a name of timm's, for a ResNet of the same blocks.
    """
    name = _parse(text.strip())[0]
    maker = _maker(name, text)
    meanings = _meanings(inspect.getdoc(maker) or "")
    lines = [f"{name}: {networks()[name]}", ""]
    for option in inspect.signature(maker).parameters.values():
        default = "" if option.default is option.empty else f" = {option.default!r}"
        lines += [f"  {option.name}: {option.annotation}{default}", f"      {meanings.get(option.name, '')}".rstrip()]
    return lines


def _maker(name: str, text: str) -> Maker:
    from hggraph.models.makers import MAKERS

    if name not in MAKERS:
        near = difflib.get_close_matches(text, [*MAKERS, *SHORT_NAMES], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(MAKERS)}"
        raise typer.BadParameter(f"there is no network {text!r}; {hint}")
    return MAKERS[name]


def _meanings(doc: str) -> dict[str, str]:
    """Return what the section ``Args`` of a docstring says of each argument, as one line."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n)+)", doc, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*\n(?: {5,}.*\n)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


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
