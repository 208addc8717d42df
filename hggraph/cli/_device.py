"""Which device a command computes on."""

from __future__ import annotations

import torch
import typer

__all__ = ["device_of"]


def device_of(text: str | None, *, default: str | None = None) -> torch.device:
    """Return the device that ``--device`` names, which is here and can compute.

    Args:
        text: ``cpu``, ``cuda``, ``cuda:1``, ``mps``: as PyTorch writes them. None: `default`.
        default: The device without a text. None: the first GPU, or the CPU where there is none.

    Raises:
        typer.BadParameter: if there is no such device; the text says which there are.

    Example:
        >>> device_of("cpu"), device_of(None, default="cpu")
        (device(type='cpu'), device(type='cpu'))
    """
    known = _devices()
    if text is None:
        return torch.device(default or known[0])
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    # the index may be left out: of a kind that is here there is number 0
    if device is None or f"{device.type}:{device.index or 0}" not in known:
        whole = ", ".join(known)
        raise typer.BadParameter(f"--device must be one of what is here, {whole}; got {text!r}. See `hggraph info`.")
    return device


def _devices() -> list[str]:
    """Return the names of all devices that can compute, the fastest first."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [*gpus, *(["mps:0"] if torch.backends.mps.is_available() else []), "cpu:0"]
