"""``hggraph info``: versions, devices, which backend runs which operator, the networks and their options."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import platform
from typing import Annotated

import torch
import typer
from rich.console import Group
from rich.table import Table

import hggraph
from hggraph import ops
from hggraph._screen import screen
from hggraph.cli._model import network_help, networks
from hggraph.ops._library import missing_backend

__all__ = ["show_info"]

# distribution: the extra that brings it, None for what hggraph always needs
PACKAGES = {
    "torch": None,
    "torch-geometric": None,
    "triton": None,
    "numpy": None,
    "pillow": None,
    "networkx": None,
    "timm": "models",
    "torchvision": "models",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "lightning": "train",
    "jsonargparse": "train",
    "tensorboard": "train",
    "torchmetrics": "metrics",
    "pycocotools": "metrics",
    "scipy": "data",
    "av": "data",
    "scikit-learn": "sklearn",
    "scikit-image": "road",
    "rasterio": "raster",
    "matplotlib": "viz",
    "torch-scatter": "peers",
}


def show_info(
    network: Annotated[
        str | None,
        typer.Argument(
            metavar="NETWORK",
            help="Show what this network is and takes instead: hg_resnet. Without it they are listed.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show versions, devices, which backend runs each operator and why, and the networks there are.

    Put this into a bug report. Of a NETWORK: each option with its type, its default and what it means.
    """
    console = screen()
    if network is not None:
        for line in network_help(network):
            console.print(line)
        return
    for title, part in [
        ("Versions", _versions()),
        ("Devices", _devices()),
        ("Operators", _operators()),
        ("Networks, of which `hggraph info NETWORK` shows the options", _networks()),
    ]:
        console.print(title, style="bold")
        console.print(part)
        console.print()


def _versions() -> Table:
    table = _table()
    table.add_row("hggraph", hggraph.__version__)
    table.add_row("python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for package, extra in PACKAGES.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
            if extra is not None:
                version += f' (pip install "hggraph[{extra}]")'
            elif package == "triton":
                version += " (comes with PyTorch's GPU builds for Linux)"
        table.add_row(package, version)
    return table


def _devices() -> Table:
    table = _table()
    table.add_row("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        about = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {runtime}"
        table.add_row(f"cuda:{index}", about)
    if torch.cuda.device_count() == 0:
        table.add_row("gpu", "none: PyTorch finds no CUDA or ROCm device")
    return table


def _operators() -> Group:
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    table = Table("operator", *devices, box=None, padding=(0, 2, 0, 2))
    reasons = set()
    for name in operator_names():
        backends, why = zip(*(backend_on(device, name) for device in devices), strict=True)
        table.add_row(name, *backends)
        reasons |= {f"{device}: {reason}" for device, reason in zip(devices, why, strict=True) if reason}
    return Group(table, *(f"  why not Triton on {reason}" for reason in sorted(reasons)))


def _networks() -> Table:
    table = _table()
    for name, about in networks().items():
        table.add_row(name, about)
    return table


def operator_names() -> list[str]:
    """Return the names of the operators: the files of `hggraph.ops` that ask for a kernel."""
    names = sorted(file.name for file in pkgutil.iter_modules(ops.__path__))
    modules = {name: importlib.import_module(f"hggraph.ops.{name}") for name in names}
    return [name for name in names if name[0] != "_" and hasattr(modules[name], "kernel")]


def backend_on(device: str, name: str) -> tuple[str, str]:
    """Return the backend that runs an operator on a device, and why that is not Triton.

    Args:
        device: ``"cpu"`` or a GPU, ``"cuda:0"`` for example.
        name: Name of the operator.

    Returns:
        ``"torch"`` or ``"triton"``, and the reason for the first, empty for the second.

    Example:
        >>> backend_on("cpu", "region_pool")[0]
        'torch'
    """
    reasons = [missing_backend("triton")]
    if importlib.util.find_spec(f"hggraph.kernels.{name}") is None:
        reasons.append(f"there is no Triton kernel of {name}")
    if device == "cpu" and reasons == [None]:
        reasons.append("Triton kernels need tensors on a GPU")
    why = "; ".join(reason for reason in reasons if reason)
    return ("torch", why) if why else ("triton", "")


def _table() -> Table:
    return Table(box=None, show_header=False, padding=(0, 2, 0, 2))
