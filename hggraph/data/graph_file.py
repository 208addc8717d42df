"""Graphs in files that hold tensors and numbers only, and their own hash: reading one can run no code."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from hggraph._files import write_atomically

__all__ = ["load_graph", "save_graph"]

_MARK = b"sha256:"  # before the hash, in the comment that ends a .pt file, which is a zip
_KEY = b'"sha256":"'  # before the hash, in the header of a .safetensors file
_UNSET = b"0" * 64


def save_graph(data: Data, path: str | Path) -> None:
    """Write a PyG graph as ``.pt`` or ``.safetensors``.

    A ``.pt`` file holds ``data.to_dict()``, as a pickled `Data` does not load with
    ``weights_only=True``. So it needs nothing but PyTorch and PyG to read:
    ``Data.from_dict(torch.load(path, weights_only=True))``. A ``.safetensors`` file holds the
    tensors, and everything else as JSON under ``hggraph`` in its header. Both hold the SHA-256 of
    the whole file, made with 64 zeros in the hash's place, which `load_graph` verifies.

    Args:
        data: A graph whose attributes are tensors, numbers, strings, None, or lists, tuples and
            dictionaries (by strings) of them. In ``.safetensors`` tensors are attributes
            themselves, not inside another, and a tuple comes back as a list.
        path: The file; it is written under a temporary name and renamed.

    Raises:
        ValueError: if the suffix is neither, or an attribute is something else; the text names it.
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
    _check_suffix(path)
    values: dict[str, Any] = data.to_dict()
    for name, value in values.items():
        _check_plain(name, value, path.suffix, inside=False)
    # clones: a graph cut from a batch has views, and a view is written with all that it looks into
    tensors = {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}
    if path.suffix == ".pt":
        buffer = io.BytesIO()
        torch.save({**values, **tensors}, buffer)
        comment = _MARK + _UNSET
        content = buffer.getvalue()[:-2] + len(comment).to_bytes(2, "little") + comment
    else:
        save = _safetensors().save
        others = {name: value for name, value in values.items() if name not in tensors}
        metadata = {"hggraph": json.dumps(others), "sha256": _UNSET.decode()}
        content = _sorted_header(save({name: value.contiguous() for name, value in tensors.items()}, metadata=metadata))
    start, _ = _hash_in(content, path.suffix)
    whole = content[:start] + hashlib.sha256(content).hexdigest().encode() + content[start + 64 :]
    write_atomically(path, lambda temporary: temporary.write_bytes(whole))


def load_graph(path: str | Path) -> Data:
    """Read a graph that `save_graph` wrote.

    Args:
        path: A ``.pt`` or ``.safetensors`` file. One without a hash, of an older hggraph or of another program, is
            read as it is: a changed bit in its numbers is not found.

    Returns:
        The graph, on the CPU.

    Raises:
        ValueError: if the suffix is neither; if the file is damaged, by its hash, or holds no graph.
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
    _check_suffix(path)
    load = _safetensors().load if path.suffix == ".safetensors" else None
    content = path.read_bytes()
    start, found = _hash_in(content, path.suffix)
    if found and hashlib.sha256(content[:start] + _UNSET + content[start + 64 :]).hexdigest().encode() != found:
        raise ValueError(f"{path}: expected a graph as `save_graph` wrote it, got other content than its hash says.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of sparse tensors and of damaged files
            if load is None:
                values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            else:
                values = load(content)
                metadata = json.loads(content[8 : 8 + _header_length(content)]).get("__metadata__", {})
                values = {**values, **json.loads(metadata.get("hggraph", "{}"))}
        return Data.from_dict(values)
    except Exception as error:  # whatever a file of any content makes its reader raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: expected a graph as `save_graph` writes it, got {reason}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"`path` must end in .pt or .safetensors, got {str(path)!r}.")


def _check_plain(name: str, value: Any, suffix: str, *, inside: bool) -> None:
    """Raise a ValueError that names the attribute unless it can be written and read again."""
    if isinstance(value, Tensor):
        plain = value.layout == torch.strided and not value.is_quantized and not inside
        if not value.is_meta and not value.is_nested and (plain or suffix == ".pt"):
            return
    elif value is None or type(value) in (bool, int, float, str):
        return
    elif type(value) in (list, tuple, dict) and (not isinstance(value, dict) or all(type(key) is str for key in value)):
        for one in value.values() if isinstance(value, dict) else value:
            _check_plain(name, one, suffix, inside=True)
        return
    got = f"a {value.layout} tensor on {value.device}" if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"`data.{name}` must be a tensor, number, string, None, or a list, tuple or dictionary by strings of them, as "
        f"{suffix} can hold, got {got}{' inside' if inside else ''}."
    )


def _hash_in(content: bytes, suffix: str) -> tuple[int, bytes]:
    """Return where a file's hash begins and the hash, which is empty in a file without one."""
    if suffix == ".pt":
        start = len(content) - 64
        has_one = content[:start].endswith(_MARK)
    else:
        at = content.find(_KEY, 0, 8 + _header_length(content))
        start, has_one = at + len(_KEY), at >= 0
    return start, content[start : start + 64] if has_one else b""


def _sorted_header(content: bytes) -> bytes:
    """Return a .safetensors file whose metadata stand in one order, always, as the library's do not."""
    end = 8 + _header_length(content)
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _header_length(content: bytes) -> int:
    return int.from_bytes(content[:8], "little")


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(
            "A .safetensors file needs a package that is not installed: pip install safetensors"
        ) from error
