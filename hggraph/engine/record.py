"""What a run says of itself: the options that it is trained by, and those that it was trained by before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning_utilities.core.rank_zero import rank_zero_only

from hggraph._files import write_atomically

__all__ = ["CONFIG", "RunError", "RunRecord"]

CONFIG = "config.yaml"
HERE = ("config", "out", "ckpt_path", "change")  # of one call, not of the run
# What another value leaves true: what was trained, on what, in which steps and epochs, and how the best was chosen.
FREE = ("data.root", "data.num_workers", "data.eval_batch_size", "save_every", "pictures", "trainer.")
BINDING = (  # of the trainer's
    "trainer.accumulate_grad_batches",
    "trainer.callbacks",
    "trainer.gradient_clip_algorithm",
    "trainer.gradient_clip_val",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
    "trainer.sync_batchnorm",
)


class RunError(ValueError):
    """A command asks for what the run does not have, or would make its record false; the text says what to do."""

    exit_code = 2


class RunRecord(lightning.Callback):
    """Keep ``config.yaml`` of a run true to what is trained, and what was true before.

    Args:
        folder: Folder of the run.
        text: All options, as YAML.
        checkpoint: What training goes on from, or None.
        change: Go on with options that change what is trained.

    `lines` says what has changed since the checkpoint. The file that is replaced is kept as
    ``config-until-step-<step>.yaml``.

    Raises:
        RunError: if options have changed that a run is trained by, without `change`, or are not known.
    """

    def __init__(self, folder: Path, text: str, checkpoint: str | Path | None, *, change: bool = False) -> None:
        self.folder = folder
        self.config = {name: value for name, value in yaml.safe_load(text).items() if name not in HERE}
        self.config["trainer"]["default_root_dir"] = None  # the folder that the file is in
        self.lines: list[str] = []
        if checkpoint is None or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return
        checkpoint = Path(checkpoint)
        known = [one / CONFIG for one in (folder, checkpoint.parent.parent) if (one / CONFIG).is_file()]
        if not known and not change:
            raise RunError(
                f"Nothing says what {checkpoint} was trained by, there is no {CONFIG} beside it: give another --out to "
                f"start anew, or --change to go on all the same."
            )
        self.lines = [f"Going on from {checkpoint}"]
        old = yaml.safe_load(known[0].read_text(encoding="utf-8")) if known else {}
        changes = dict(_changes(old, self.config)) if known else {}
        self.lines += [f"  {name}: {change}" for name, change in changes.items()]
        binding = [name for name in changes if name.startswith(BINDING) or not name.startswith(FREE)]
        if binding and not change:
            named = ", ".join(f"{name} {changes[name]}" for name in binding[:5])
            more = f" and {len(binding) - 5} more" if len(binding) > 5 else ""
            raise RunError(
                f"{checkpoint} was trained by other options: {named}{more}. Give these, or --change to go on with the "
                f"new ones, which is recorded, or another --out to start anew."
            )

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run that was moved find its best checkpoint."""
        here = str((self.folder / "checkpoints").resolve())
        if Path(str(trainer.ckpt_path)).resolve().parent != Path(here):
            return
        for state in checkpoint["callbacks"].values():
            if there := state.get("dirpath"):
                names = ("best_model_path", "last_model_path", "kth_best_model_path", "dirpath")
                state.update({name: state[name].replace(there, here) for name in names})
                models = state["best_k_models"].items()
                state["best_k_models"] = {path.replace(there, here): score for path, score in models}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the options before the first step."""
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / CONFIG
        before = self.folder / f"config-until-step-{trainer.global_step}.yaml"
        old = path.read_bytes() if trainer.global_step and path.is_file() and not before.exists() else b""
        if old and yaml.safe_load(old) != self.config:
            write_atomically(before, lambda temporary: temporary.write_bytes(old))
        text = yaml.safe_dump(self.config, sort_keys=False)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _changes(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Give the options that differ, with ``old -> new``, by their dotted names."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) != new.get(key):
                yield from _changes(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    elif old != new:
        yield name, f"{_brief(old)} -> {_brief(new)}"


def _brief(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 60 else text[:57] + "..."
