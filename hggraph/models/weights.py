"""Weights: timm's backbones with or without pretrained ones, and whole networks in safetensors files."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hggraph._files import write_atomically
from hggraph.models._hub import fetch
from hggraph.models.weight_names import feature_sources, to_timm

Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]

__all__ = ["check_state", "create_backbone", "load_weights", "save_weights"]


def create_backbone(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    in_channels: int = 3,
    output_stride: int = 32,
    deep_stem: bool = False,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
) -> Any:
    """Make a network of timm, with all of its pretrained weights or none.

    Args:
        name: timm's name, for example ``"resnet101s"``, with a tag of weights or without.
        pretrained: True downloads timm's weights (and keeps them, as Hugging Face's hub does); a path reads a
            ``.safetensors`` or ``.pth`` file of the same network, timm's, torchvision's or lukemelas' (see
            `hggraph.models.weight_names.to_timm`). The classifier may be missing in it.
        in_channels: Channels of the images; with others than 3 the first convolution's weights are repeated or
            summed, as timm does.
        output_stride: Image pixels per pixel of the last map; below 32 stages are dilated instead of strided.
        deep_stem: Give a ResNet a stem of three 3x3 with 64, 64 and 128 channels, for which there are no weights.
        features_only: timm's network of features: it returns a list of maps and ends after the last of them. It takes
            the same files, and what it lacks of the whole network may be missing in them.
        out_indices: Which maps, by their place in timm's ``feature_info``, or how many of the last ones; timm's
            choice if None. Only with `features_only`.

    Returns:
        timm's module.

    Raises:
        ValueError: if timm has no such network, or not of this output stride, stem or maps; if the file is none of
            weights, or of another network's.
        FileNotFoundError: if `pretrained` is a path to nothing.
        RuntimeError: if the weights cannot be downloaded; the text names the file.

    Example:
        >>> type(create_backbone("resnet18", in_channels=4)).__name__
        'ResNet'
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"timm has no network {name!r}.{hint}")
    options: dict[str, Any] = {"output_stride": output_stride} if output_stride != 32 else {}
    if deep_stem:
        options |= {"stem_type": "deep", "stem_width": 64}
        if pretrained is True:
            raise ValueError(f"There are no pretrained weights for {name!r} with a deep stem; use the plain one.")
    if out_indices is not None and not features_only:
        raise ValueError("`out_indices` chooses maps of `features_only=True`; the whole network has none to choose.")
    features: dict[str, Any] = {"features_only": True} if features_only else {}
    if out_indices is not None:
        features["out_indices"] = out_indices if isinstance(out_indices, int) else tuple(out_indices)
    model = _make(name, in_channels, options | features)
    if pretrained is not False:
        path = _download(name) if pretrained is True else Path(pretrained)
        state = _read(path)
        whole = _make(name, in_channels, options) if features_only else model
        _load_backbone(model, whole, state, name, path, in_channels)
    return model


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a network's parameters and statistics into a safetensors file.

    Args:
        model: Any module.
        path: The file to write, ending in ``.safetensors``; never half of it (see `write_atomically`).

    Raises:
        ValueError: if `path` ends otherwise.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(nn.Linear(2, 3), Path(folder, "linear.safetensors"))
        ...     load_weights(nn.Linear(2, 3), Path(folder, "linear.safetensors"))
    """
    from safetensors.torch import save_file

    if Path(path).suffix != ".safetensors":
        raise ValueError(f"`path` must end in .safetensors, got {str(path)!r}.")
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(state, temporary))


def load_weights(model: nn.Module, path: str | Path, *, rename: Rename | None = None) -> None:
    """Read what `save_weights` has written into a network of the same shape.

    Args:
        model: Gets the weights, on the device where it is.
        path: A ``.safetensors`` file, or a ``.pth`` file of tensors alone.
        rename: Maps the tensors by name to those of this network, for files of another program.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of weights or another network's; the network is then as it was.
    """
    state = _read(Path(path))
    state = state if rename is None else rename(state)
    check_state(state, model.state_dict(), Path(path), type(model).__name__)
    model.load_state_dict(state)


def _make(name: str, in_channels: int, options: dict[str, Any]) -> Any:
    import timm

    # What timm raises for options that a network has not; one of features refuses with these too.
    refusals: list[type[Exception]] = [AssertionError, NotImplementedError, TypeError]
    if "features_only" in options:
        refusals += [AttributeError, IndexError, RuntimeError]
    try:
        return timm.create_model(name, pretrained=False, in_chans=in_channels, **options)
    except tuple(refusals) as error:
        raise ValueError(
            f"timm's {name!r} cannot be made with {options}: it is no network with these stages."
        ) from error


def _load_backbone(
    model: nn.Module, whole: nn.Module, state: dict[str, Tensor], name: str, path: Path, in_channels: int
) -> None:
    """Load `model`, which is `whole` or its features alone, from a file of `whole`."""
    config: dict[str, Any] = getattr(whole, "pretrained_cfg", {})
    full, mine = whole.state_dict(), model.state_dict()
    heads = tuple(f"{module}." for module in _as_tuple(config.get("classifier")))
    sources = {key: key for key in full} if model is whole else feature_sources(mine, full)
    if lost := sorted(key for key, source in sources.items() if source is None):
        raise ValueError(
            f"No weights of {name} belong to {len(lost)} parameters of its features: {_some(lost)}. "
            "Use the whole network. Nothing was loaded."
        )
    sources = {key: source for key, source in sources.items() if source and not source.startswith(heads)}
    wanted = {source: mine[key] for key, source in sources.items() if source}
    state = {key: value for key, value in _as_timm(state, whole).items() if not key.startswith(heads)}
    state = {key: value for key, value in state.items() if key in wanted or key not in full}
    for first in (f"{module}.weight" for module in _as_tuple(config.get("first_conv"))):
        if in_channels != 3 and first in state and first in wanted and state[first].shape != wanted[first].shape:
            state[first] = _adapted(in_channels, state[first])
    check_state(state, wanted, path, name)
    model.load_state_dict({key: state[source] for key, source in sources.items() if source}, strict=False)


def _as_timm(state: dict[str, Tensor], whole: nn.Module) -> dict[str, Tensor]:
    """The file's tensors by timm's names, as far as its layout is known."""
    full = whole.state_dict()
    state = to_timm(state, full.keys())
    if not state.keys() <= full.keys():  # timm's own older layouts, by the rules beside the network
        rules = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
        try:
            renamed = rules(dict(state), whole) if rules else state
        except Exception:  # they take a file of this network for granted; `check_state` says what it is instead
            renamed = state
        state = renamed if renamed.keys() <= full.keys() else state
    # Files of the first PyTorch versions do not count batches.
    counts = {key: value for key, value in full.items() if key.endswith(".num_batches_tracked") and key not in state}
    return {
        **state,
        **{k: v for k, v in counts.items() if k.removesuffix("num_batches_tracked") + "running_mean" in state},
    }


def _adapted(in_channels: int, weight: Tensor) -> Tensor:
    from timm.models import adapt_input_conv

    try:
        return adapt_input_conv(in_channels, weight)
    except NotImplementedError:
        return weight  # of another shape, as `check_state` says then


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Raise unless names and shapes are the same."""
    missing = sorted(wanted.keys() - state.keys())
    surplus = sorted(state.keys() - wanted.keys())
    other = sorted(key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape)
    if missing or surplus or other:
        shapes = [f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}" for key in other]
        found = {"missing": missing, "not expected": surplus, "of another shape": shapes}
        text = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in found.items() if keys)
        raise ValueError(f"The weights in {path} are not those of {name} ({text}). Nothing was loaded.")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _read(path: Path) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    if not path.is_file():
        raise FileNotFoundError(f"There is no file of weights at {path}.")
    try:
        return load_state_dict(str(path), use_ema=False)  # tensors alone: no code in the file is run
    except Exception as error:
        raise ValueError(f"{path} is not a file of weights (.safetensors or .pth): {error}") from error


def _download(name: str) -> Path:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ValueError(f"timm has no pretrained weights for {name!r}; give a file: pretrained='weights.safetensors'.")
    try:
        return fetch(config.hf_hub_id, "model.safetensors")
    except Exception as error:
        raise RuntimeError(
            f"The pretrained weights model.safetensors of https://huggingface.co/{config.hf_hub_id} could not be "
            f"downloaded ({type(error).__name__}). Fetch the file where there is a network and give its path: "
            f"pretrained='model.safetensors'. Nothing was loaded."
        ) from error
