"""Files with something changed: read as before, or refused with the one error that says which file."""

import functools
import io
import json
import random
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from torch_geometric.data import Data

from hggraph.cluster import SoftSLIC
from hggraph.data import (
    ImageError,
    extract,
    load_attention,
    load_graph,
    load_image,
    load_labels,
    save_graph,
)
from hggraph.data.image import image_size
from hggraph.data.mask_reader import DatasetError
from hggraph.graph import to_networkx
from hggraph.models import from_pretrained, hg_orientation, save_pretrained

FOLDER = Path(tempfile.gettempdir())  # the test gives each child its own
ARCHIVES = ("zip", "stored.zip", "tar", "tar.gz", "tar.bz2", "tar.xz")
Edit = tuple[str, float, int]
kinds = st.sampled_from(["bit", "byte", "cut", "insert", "remove", "zeros"])
edits = st.lists(st.tuples(kinds, st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3)
# two may take the hash away and then change the rest: a hash is no signature
edit = st.lists(st.tuples(kinds, st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=1)


def edited(content: bytes, changes: list[Edit]) -> bytes:
    """Return a file's content after some changes, each at a share of its length."""
    data = bytearray(content)
    for kind, share, number in changes:
        at = min(int(share * len(data)), max(0, len(data) - 1))
        if kind == "bit" and data:
            data[at] ^= 1 << number % 8
        elif kind == "byte" and data:
            data[at] = number
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = bytes([number]) * (1 + number % 9)
        elif kind == "remove":
            del data[at : at + 1 + number % 9]
        else:
            data[at : at + 8] = bytes(8)
    return bytes(data)


@functools.cache
def images() -> dict[str, bytes]:
    """Return a small image of every kind."""
    rng = np.random.default_rng(0)
    rgb, grey = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), rng.integers(0, 200, (20, 30), dtype=np.uint8)
    wide, alpha = grey.astype(np.uint16) * 257, np.dstack([rgb, grey])
    of: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "rgb.png": (rgb, "PNG", {}),
        "grey.png": (grey, "PNG", {}),
        "wide.png": (wide, "PNG", {}),
        "alpha.png": (alpha, "PNG", {}),
        "bits.png": (Image.fromarray(grey > 100), "PNG", {}),
        "palette.png": (Image.fromarray(rgb).quantize(16), "PNG", {"bits": 4}),
        "a.jpg": (rgb, "JPEG", {}),
        "grey.jpg": (grey, "JPEG", {"progressive": True}),
        "a.bmp": (rgb, "BMP", {}),
        "palette.bmp": (Image.fromarray(rgb).quantize(16), "BMP", {}),
        "a.webp": (rgb, "WEBP", {}),
        "whole.webp": (alpha, "WEBP", {"lossless": True}),
        **{f"{name}.tif": (rgb, "TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_deflate", "jpeg")},
        "float.tif": (grey.astype(np.float32) / 255, "TIFF", {}),
        "wide.tif": (wide, "TIFF", {}),
    }
    found = {}
    for name, (pixels, kind, options) in of.items():
        stream = io.BytesIO()
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, kind, **options)
        found[name] = stream.getvalue()
    return found


def check_image(example: tuple[str, list[Edit]]) -> str:
    name, changes = example
    path = FOLDER / name
    path.write_bytes(edited(images()[name], changes))
    answers: list[Any] = []
    for read in (load_image, load_labels, image_size, lambda path: load_attention(path, (20, 30))):
        try:
            answers.append(read(path))
        except ImageError as error:
            assert str(path) in str(error), f"an error without its file: {error}"
            answers.append(None)
    image, labels, size, attention = answers
    if image is not None:
        assert image.dtype == torch.float32 and image.dim() == 3 and len(image) == 3, f"an image {image.shape}"
        assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1, "colours outside [0, 1]"
        assert size == tuple(image.shape[1:]), f"an image of {tuple(image.shape)} declared as {size}"
    if labels is not None:
        assert labels.ndim == 2 and labels.dtype.kind in "iu" and labels.min() >= 0, f"labels {labels.dtype}"
    if attention is not None:
        assert attention.shape == (20, 30) and attention.isfinite().all(), f"an attention map of {attention.shape}"
    return "refused" if all(answer is None for answer in answers) else "read"


@functools.cache
def archives() -> dict[str, tuple[bytes, dict[str, bytes | None]]]:
    """Return archives of one small tree, and the tree."""
    rng = random.Random(0)
    tree = {"data": None, "data/straße.txt": rng.randbytes(300), "data/b/c.bin": bytes(5000), "readme": b"read"}
    tree |= {f"data/{'x' * 120}.txt": b"long" * 50, "data/b": None}
    found = {}
    for kind in ARCHIVES:
        stream = io.BytesIO()
        if kind.endswith("zip"):
            method = zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED
            with zipfile.ZipFile(stream, "w", method) as file:
                for name, content in tree.items():
                    file.writestr(name + "/" * (content is None), content or b"")
        else:
            with tarfile.open(fileobj=stream, mode=f"w:{kind[4:]}") as file:
                for name, content in tree.items():
                    info = tarfile.TarInfo(name)
                    info.type, info.size = (tarfile.DIRTYPE, 0) if content is None else (tarfile.REGTYPE, len(content))
                    file.addfile(info, io.BytesIO(content or b""))
        found[kind] = (stream.getvalue(), tree)
    return found


def contents(folder: Path) -> dict[str, bytes | None]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def check_archive(example: tuple[str, list[Edit]]) -> str:
    kind, changes = example
    whole, tree = archives()[kind]
    path, out = FOLDER / f"a.{kind}", FOLDER / "out"
    path.write_bytes(edited(whole, changes))
    shutil.rmtree(out, ignore_errors=True)
    try:
        extract(path, out, max_bytes=1 << 22)
    except DatasetError as error:
        assert str(path) in str(error) and contents(out) == {}, f"{error}, with {list(contents(out))} unpacked"
        return "refused"
    # a plain tar has no checksum of its content, nor of long names
    assert kind == "tar" or contents(out) == tree, "other content than was packed"
    return "unpacked"


@functools.cache
def graphs() -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Return the same graph in each format."""
    torch.manual_seed(0)
    data = Data(
        x=torch.rand(5, 3), edge_index=torch.tensor([[0, 1], [1, 2]]), edge_weight=torch.rand(2, 1), name="straße"
    )
    found = {}
    for suffix in (".pt", ".safetensors"):
        save_graph(data, FOLDER / f"whole{suffix}")
        found[suffix] = ((FOLDER / f"whole{suffix}").read_bytes(), data.to_dict())
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def check_graph_file(example: tuple[str, list[Edit]]) -> str:
    suffix, changes = example
    whole, values = graphs()[suffix]
    path = FOLDER / f"graph{suffix}"
    path.write_bytes(edited(whole, changes))
    try:
        found = load_graph(path).to_dict()
    except ValueError as error:
        assert str(path) in str(error), f"an error without its file: {error}"
        return "refused"
    assert found.keys() == values.keys() and all(same(found[key], values[key]) for key in values), "another graph"
    return "read"


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.complex64, torch.int8]
attributes = st.one_of(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.binary(max_size=3) | st.complex_numbers(),
    st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
)


def check_attribute(example: tuple[str, Any]) -> str:
    name, value = example
    if isinstance(value, tuple) and value and isinstance(value[0], torch.dtype):
        value = (torch.rand(value[1]) * 5).to(value[0])
    data = Data(edge_index=torch.tensor([[0, 1, 2, 0], [1, 2, 0, 0]]), num_nodes=3)
    data[name] = value
    outcomes = []
    for write in (
        lambda: _through_file(data, FOLDER / "a.pt"),
        lambda: _through_file(data, FOLDER / "a.safetensors"),
        lambda: nx.read_graphml(io.BytesIO("\n".join(nx.generate_graphml(to_networkx(data))).encode())),
    ):
        try:
            write()
            outcomes.append("written")
        except (ValueError, TypeError) as error:
            assert f"`data.{name}`" in str(error), f"an error without the attribute: {error}"
            outcomes.append("refused")
    return " ".join(outcomes)


def _through_file(data: Data, path: Path) -> None:
    save_graph(data, path)
    found = load_graph(path).to_dict()
    for key, value in data.to_dict().items():
        if isinstance(value, float) and value != value:
            assert found[key] != found[key]
        else:
            assert same(found[key], value), f"{key} was {value!r}, is {found[key]!r}"


@functools.cache
def model() -> Path:
    torch.manual_seed(0)
    arguments = {"channels": 8, "depth": 1, "stacks": 1, "branches": 1, "clusterer": SoftSLIC(4)}
    net = hg_orientation(**arguments)
    options: dict[str, Any] = {"classes": ["no", "yes"], "mean": [0.5] * 3, "std": [0.25] * 3}
    return save_pretrained(net, FOLDER / "model", model="hg_orientation", arguments=arguments, **options)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([1e7, -1, 0, 1 << 40]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def check_config(example: tuple[list[Edit], int, Any]) -> str:
    """Change bytes of a model folder's configuration, or one of its values at any depth."""
    changes, number, value = example
    folder = FOLDER / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model(), folder)
    content = (folder / "config.json").read_bytes()
    if number:
        config = json.loads(content)
        places = list(_places(config))
        holder, key = places[number % len(places)]
        holder[key] = value
        content = json.dumps(config).encode()
    else:
        content = edited(content, changes)
    (folder / "config.json").write_bytes(content)
    try:
        net = from_pretrained(folder)
    except ValueError as error:
        assert "config" in str(error) or str(folder) in str(error), f"an error without its file: {error}"
        return "refused"
    assert isinstance(net, torch.nn.Module)
    return "loaded"


def _places(value: Any) -> Any:
    """Yield the containers and keys of all values inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


TARGETS: dict[str, tuple[Any, Callable[[Any], str]]] = {
    "images": (st.tuples(st.sampled_from(sorted(images())), edits), check_image),
    "archives": (st.tuples(st.sampled_from(ARCHIVES), edits), check_archive),
    "graph files": (st.tuples(st.sampled_from([".pt", ".safetensors"]), edit), check_graph_file),
    "graph attributes": (
        st.tuples(st.sampled_from(["x", "pos", "area", "edge_type", "edge_weight"]), attributes),
        check_attribute,
    ),
    "configurations": (st.tuples(edits, st.integers(0, 500), json_values), check_config),
}
