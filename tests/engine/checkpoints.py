"""Checkpoints to save."""

from collections import OrderedDict
from pathlib import Path

import torch

from hggraph.engine.checkpoint import SafeCheckpointIO


def content(step: int, size: int = 1000) -> dict:
    weights = OrderedDict(a=torch.full((size,), float(step)), b=torch.arange(6.0).view(2, 3).T)
    return {"global_step": step, "epoch": 0, "state_dict": weights, "optimizer_states": [{"lr": 0.1}]}


def save(folder: Path, step: int, name: str = "last", **more) -> Path:
    path = folder / f"{name}.ckpt"
    SafeCheckpointIO().save_checkpoint(content(step, **more), path)
    return path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
