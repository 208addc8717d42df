"""Graphs in files that hold tensors and numbers only: reading one can run no code."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from hggraph._files import write_atomically

__all__ = ["load_graph", "save_graph"]


def save_graph(data: Data, path: str | Path) -> None:
    """Write a PyG graph as ``.pt`` or ``.safetensors``.

    A ``.pt`` file holds ``data.to_dict()``, as a pickled `Data` does not load with
    ``weights_only=True``. So it needs nothing but PyTorch and PyG to read:
    ``Data.from_dict(torch.load(path, weights_only=True))``. A ``.safetensors`` file holds the
    tensors, and everything else as JSON under ``hggraph`` in its header.

    Args:
        data: A graph whose attributes are tensors, numbers, strings, or lists, tuples and
            dictionaries of them.
        path: The file; it is written under a temporary name and renamed.

    Raises:
        ValueError: if the suffix is neither.
        ImportError: for ``.safetensors`` without that package; the text says how to get it.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> graph = Data(x=torch.zeros(2, 3), edge_index=torch.tensor([[0], [1]]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_graph(graph, f"{folder}/graph.pt")
        ...     load_graph(f"{folder}/graph.pt")
        Data(x=[2, 3], edge_index=[2, 1])
    """
    path = Path(path)
    values: dict[str, Any] = data.to_dict()
    # clones: a graph cut from a batch has views, and a view is written with all that it looks into
    tensors = {key: value.clone() for key, value in values.items() if isinstance(value, Tensor)}
    if path.suffix == ".pt":
        # through a file object: by name, torch writes the temporary name into the file
        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                torch.save({**values, **tensors}, file)

    elif path.suffix == ".safetensors":
        save_file = _safetensors("safetensors.torch").save_file
        whole = {key: value.contiguous() for key, value in tensors.items()}
        others = {key: value for key, value in values.items() if key not in tensors}

        def write(temporary: Path) -> None:
            save_file(whole, temporary, metadata={"hggraph": json.dumps(others)})

    else:
        raise ValueError(f"`path` must end in .pt or .safetensors, got {str(path)!r}.")
    write_atomically(path, write)


def load_graph(path: str | Path) -> Data:
    """Read a graph that `save_graph` wrote.

    Args:
        path: A ``.pt`` or ``.safetensors`` file.

    Returns:
        The graph, on the CPU.

    Raises:
        ValueError: if the suffix is neither.
        ImportError: for ``.safetensors`` without that package.
        OSError: if the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_graph(Data(x=torch.zeros(2, 3)), f"{folder}/graph.pt")
        ...     load_graph(f"{folder}/graph.pt")
        Data(x=[2, 3])
    """
    path = Path(path)
    if path.suffix == ".pt":
        return Data.from_dict(torch.load(path, map_location="cpu", weights_only=True))
    if path.suffix != ".safetensors":
        raise ValueError(f"`path` must end in .pt or .safetensors, got {str(path)!r}.")
    with _safetensors("safetensors").safe_open(path, framework="pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dictionary)
        others = json.loads((file.metadata() or {}).get("hggraph", "{}"))
    return Data.from_dict({**values, **others})


def _safetensors(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            "A .safetensors file needs a package that is not installed: pip install safetensors"
        ) from error
