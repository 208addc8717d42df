"""What a network is made of, as JSON says it, and the network made of that: nothing but names that are known here."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from hggraph.models.makers import NETWORKS, PARTS

__all__ = ["describe", "described_recipe", "foreign_names", "make", "make_foreign", "on_meta", "with_defaults"]

# Most that a description may ask for. Loops and tables grow with these numbers before a weight is compared.
MOST = {
    "depth": 1000,
    "stacks": 32,
    "branches": 32,
    "levels": 32,
    "kernel_size": 255,
    "iterations": 1000,
    "bins": 256,
    "oversample": 1000,
    "num_orientations": 1000,
}
LARGEST = 1 << 20  # of any other number
LONGEST = 1000  # of texts and lists
DEEPEST = 8
MODULES = 20_000
# options that came after the first files, and what held before
_FIRST = {"SoftSLIC": {"update": "column", "position": 0.0, "smooth": 0.0, "connected": False}}
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def describe(name: str, value: Any) -> Any:
    """Return a network's argument as JSON says it: parts by their name, ``{"SoftSLIC": {"downsample": 16}}``.

    Raises:
        ValueError: if it is neither a number, text, a list or None, nor a part that a model folder may name.
    """
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [describe(name, one) for one in value]
    kind: type[Any] = type(value)
    if kind is nn.Conv2d and value.padding_mode == "zeros":
        conv = {key: describe(name, getattr(value, key)) for key in _CONV}
        return {"Conv2d": conv | {"bias": value.bias is not None}}
    part = kind.__name__
    if PARTS.get(part) is kind:
        options = inspect.signature(PARTS[part]).parameters
        return {part: {key: describe(f"{name}.{key}", getattr(value, key)) for key in options}}
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in PARTS:
        return value  # described already
    known = ", ".join(key for key, maker in PARTS.items() if isinstance(maker, type))
    raise ValueError(
        f"`arguments[{name!r}]` must be a number, text, a list, None or one of {known}: what JSON can say. Got {part}."
    )


def with_defaults(model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a network described, those left out with their defaults, but ``pretrained``."""
    parameters = inspect.signature(_known(model, NETWORKS)).parameters
    given = {
        key: parameter.default for key, parameter in parameters.items() if parameter.default is not parameter.empty
    }
    return {key: describe(key, value) for key, value in (given | dict(arguments)).items() if key != "pretrained"}


def make(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Make a network of a description, which may come from anyone.

    Nothing but `NETWORKS` and `PARTS` can be named, and no number may be out of all range: what is made is compared
    with the weights before it gets memory if it is made on the ``meta`` device.

    Raises:
        ValueError: if the description is not as said; also for whatever a maker finds wrong with its arguments.
    """
    maker = _known(model, NETWORKS)
    try:
        with _few_modules(), torch.random.fork_rng(devices=[]):  # nobody's random numbers change
            made: nn.Module = _call(model, maker, arguments, 0)
    except (ValueError, TypeError, RuntimeError, RecursionError, OverflowError, ArithmeticError, LookupError) as error:
        text = str(error) or type(error).__name__
        raise ValueError(text if isinstance(error, ValueError) else f"{model} cannot be made: {text}") from error
    return made


def _known(name: Any, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if not isinstance(name, str) or name not in table:
        near = difflib.get_close_matches(str(name)[:100], table, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"`model` must be one of {', '.join(table)}, got {str(name)[:100]!r}.{hint}")
    return table[name]


def _call(name: str, maker: Callable[..., Any], arguments: Any, depth: int) -> Any:
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of {name} must be an object, got {type(arguments).__name__}.")
    known = inspect.signature(maker).parameters.keys() - {"pretrained", "device", "dtype", "padding_mode"}
    unknown = sorted(str(key) for key in arguments.keys() - known)
    if unknown:
        raise ValueError(f"{name} takes no {', '.join(unknown)[:200]}.")
    given = _FIRST.get(name, {}) | dict(arguments)
    return maker(**{key: _value(f"{name}.{key}", key, value, depth + 1) for key, value in given.items()})


def _value(where: str, key: str, value: Any, depth: int) -> Any:
    """Return an argument, once its values are in their ranges and its parts are made."""
    if depth > DEEPEST:
        raise ValueError(f"{where} is nested more than {DEEPEST} deep.")
    if isinstance(value, Mapping):
        if len(value) != 1 or next(iter(value)) not in PARTS:
            got = ", ".join(str(name) for name in value)[:100] or "nothing"
            raise ValueError(f"{where} must name one of {', '.join(PARTS)}, got {got}.")
        ((part, arguments),) = value.items()
        return _call(part, PARTS[part], arguments, depth)
    if isinstance(value, list):
        if len(value) > LONGEST:
            raise ValueError(f"{where} must have at most {LONGEST:,} entries, got {len(value):,}.")
        return [_value(where, key, one, depth + 1) for one in value]
    if isinstance(value, str) and len(value) > LONGEST:
        raise ValueError(f"{where} must be at most {LONGEST:,} characters, got {len(value):,}.")
    most = MOST.get(key, LARGEST)
    if isinstance(value, int | float) and not abs(value) <= most:  # NaN compares False
        raise ValueError(f"{where} must be a number of at most {most:,}, got {value!r:.40}.")
    return value


@contextmanager
def _few_modules() -> Iterator[None]:
    """Raise a ValueError as soon as more layers are made than any network has."""
    count = 0

    def hook(module: nn.Module, name: str, part: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > MODULES:
            raise ValueError(f"a network of more than {MODULES:,} layers was asked for.")

    handle = register_module_module_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def on_meta(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the network's shapes: made without memory for its weights."""
    with torch.device("meta"):
        return make(model, arguments)


def described_recipe(recipe: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the name and the arguments of what a recipe makes; None if a class in it is none that is known here.

    Args:
        recipe: ``{"class_path": ..., "init_args": {...}}``, of a recipe of one's own: its classes are imported.
    """
    try:
        found = _translated(recipe)
    except LookupError:
        return None
    ((model, arguments),) = found.items()
    return (model, arguments) if model in NETWORKS else None


def foreign_names(recipe: Any) -> list[str]:
    """Return what making a recipe would import, by name."""
    if isinstance(recipe, Mapping):
        inner = [name for value in recipe.values() for name in foreign_names(value)]
        return sorted({*inner, *([str(recipe["class_path"])] if "class_path" in recipe else [])})
    return sorted({name for one in recipe for name in foreign_names(one)}) if isinstance(recipe, list) else []


def make_foreign(recipe: Mapping[str, Any]) -> nn.Module:
    """Make a network of a recipe: its classes are imported and called. For recipes that the user trusts.

    Raises:
        ValueError: if that is not possible.
        ImportError: without jsonargparse, which reads recipes.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=nn.Module)
    try:
        made: nn.Module = parser.instantiate(parser.parse_object({"net": recipe})).net
    except Exception as error:  # of a parser, and of code that is not ours
        raise ValueError(f"{recipe.get('class_path')} cannot be made: {error}") from error
    return made


def _translated(value: Any) -> Any:
    """Return a recipe's value described; raise a LookupError at a class that is not known."""
    if isinstance(value, list | tuple):
        return [_translated(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    if "class_path" not in value:
        if len(value) == 1 and next(iter(value)) in PARTS:
            return value  # described already
        raise LookupError("a mapping that is no part")
    module, _, attribute = str(value["class_path"]).rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    names = {id(maker): name for name, maker in PARTS.items()} | {id(_timm()): "timm.create_model"}
    if id(found) not in names:
        raise LookupError(value["class_path"])
    part = names[id(found)]
    known = inspect.signature(PARTS[part]).parameters
    given = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
    # weights come with the folder; what a function takes beside and is not set says nothing
    given = {key: one for key, one in given.items() if key != "pretrained" and (key in known or one)}
    if given.keys() - known.keys():
        raise LookupError(f"{part} takes no {given.keys() - known.keys()}")
    return {part: {key: _translated(one) for key, one in given.items()}}


def _timm() -> Any:
    import timm

    return timm.create_model
