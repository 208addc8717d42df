"""Between the two phases of HS3: what the taps of a run confuse, and the recipe that follows from it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hggraph._files import write_atomically
from hggraph.data import HeldOut
from hggraph.data.loading import SeededSamples, SplitEvenly, collate
from hggraph.engine.checkpoint import best_checkpoint, check_parameters, load_checkpoint
from hggraph.engine.data_module import ImageData
from hggraph.engine.record import CONFIG
from hggraph.engine.task import DEFAULT_TASK, Task, find_task
from hggraph.metrics.tap_confusion import analyse
from hggraph.models._network import SegmentationNetwork
from hggraph.schemes.hs3 import (
    Grouping,
    TradeOff,
    at_angle,
    constant_ratio,
    equal_ratio,
    kmeans_groupings,
    mean_iou,
    spectral_groupings,
    trade_off,
    write_groupings,
)

__all__ = ["Plan", "analyse_run", "second_phase"]

Method = Literal["spectral", "kmeans"]


class Plan(NamedTuple):
    """What the second phase trains on, and the files that say so."""

    miou: float
    curves: dict[str, TradeOff]
    chosen: dict[str, int]
    output: TradeOff
    recipe: Path
    images: int

    @property
    def groupings(self) -> dict[str, Grouping]:
        """The grouping of each tap."""
        return {name: curve.groupings[curve.sizes.index(self.chosen[name])] for name, curve in self.curves.items()}


def analyse_run(
    run: str | Path,
    *,
    method: Method = "spectral",
    theta: float | None = None,
    aspect: float = 1.0,
    ratio: float | None = None,
    normalize: Literal["none", "rows"] = "rows",
    absent: Literal["error", "own"] = "error",
    device: str | torch.device | None = None,
    out: str | Path | None = None,
) -> Plan:
    """Analyse a run of the first phase, and write the second phase's recipe (HS3 Sec. 3.1).

    Args:
        run: Folder of a run of ``hggraph fit`` with taps, on `hggraph.data.HeldOut`'s split ``"reduced"``.
        method: Groups classes by what is confused, or by k-means on their mean features.
        theta: Degrees for `at_angle`; None: `equal_ratio`.
        aspect: See `at_angle`.
        ratio: Classes of each tap as a share of the next one's, the last one's of the output's, as `constant_ratio`
            says, whatever the curves are. None: not so.
        normalize: See `spectral_groupings`.
        absent: See `spectral_groupings`.
        device: Where the network runs; None: the CPU.
        out: Folder for what is written; None: ``hs3`` in the run's.

    Returns:
        The plan. Written are ``groupings.yaml``, ``curves.json``, ``trade_off.png`` (with matplotlib) and
        ``<name of the run>_hs3.yaml``, the recipe.

    Raises:
        FileNotFoundError: if `run` is no run.
        ValueError: if it has no taps or no images held out, was trained or validated on them, a class does not occur,
            or both `theta` and `ratio` are given.
    """
    if theta is not None and ratio is not None:
        raise ValueError(f"Give `theta` or `ratio`, not both, got {theta} and {ratio}.")
    run = Path(run)
    if not (run / CONFIG).is_file():
        raise FileNotFoundError(f"{run} is no run: there is no {CONFIG} in it. Give the folder that `fit` wrote to.")
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    net = _trained(run, copy.deepcopy(config)).to(device or "cpu")
    if not isinstance(net, SegmentationNetwork):
        raise ValueError(f"HS3 is for segmentation networks with taps, got {type(net).__name__}.")
    data = _data_of(config)
    dataset = _analysis_images(data, config)
    samples = DataLoader(
        SeededSamples(dataset, data.seed),
        data.eval_batch_size,
        sampler=SplitEvenly(len(dataset)),
        num_workers=data.workers,
        collate_fn=collate,
    )
    num_classes = net.num_classes
    names = tuple(getattr(dataset, "classes", ())) or tuple(map(str, range(num_classes)))
    found = analyse(net, samples, num_classes, features=method == "kmeans")
    groupings = {}
    for name, confusion in found.confusions.items():
        if method == "kmeans" and name != "out":
            groupings[name] = kmeans_groupings(_of_all_classes(found.features[name], names))
        else:
            _check_occurring(confusion, names, absent)
            groupings[name] = spectral_groupings(confusion, _sizes(confusion), normalize=normalize, absent=absent)
    curves = {name: trade_off(confusion, groupings[name]) for name, confusion in found.confusions.items()}
    output = curves.pop("out")
    miou = mean_iou(found.confusions["out"])
    if ratio is not None:
        chosen = dict(zip(curves, constant_ratio(num_classes, len(curves), ratio), strict=True))
    elif theta is not None:
        chosen = {name: at_angle(curve, miou, num_classes, theta, aspect=aspect) for name, curve in curves.items()}
    else:
        chosen = {name: equal_ratio(curve, miou, num_classes) for name, curve in curves.items()}
    folder = run / "hs3" if out is None else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(miou, curves, chosen, output, folder / f"{run.resolve().name}_hs3.yaml", found.images)
    _write(plan, config, names, folder, method)
    return plan


def second_phase(config: dict[str, Any], groupings: dict[str, Grouping]) -> dict[str, Any]:
    """Return the recipe of the second phase: that of the first with all training images and the taps' groupings."""
    recipe = copy.deepcopy(config)
    for key in ("config", "out"):
        recipe.pop(key, None)
    net, criterion = recipe["model"]["net"]["init_args"], recipe["model"]["criterion"]
    sizes = {name.removeprefix("tap_"): len(grouping) for name, grouping in groupings.items()}
    net["tap_classes"] = sizes if "taps" in net else list(sizes.values())
    criterion["class_path"] = "hggraph.schemes.hs3.HS3Loss"
    criterion["init_args"]["groupings"] = {
        name: [list(group) for group in grouping.groups] for name, grouping in groupings.items()
    }
    recipe["data"]["train_split"] = "train"
    return recipe


def _trained(run: Path, config: dict[str, Any]) -> nn.Module:
    """Make the network of a run with its taps, which its model folder has no more, with its best weights."""
    path = best_checkpoint(run)
    if path is None:
        raise FileNotFoundError(f"{run} has no checkpoint to use; go on training it with `hggraph fit`.")
    _drop_pretrained(config["model"]["net"])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(find_task(config.get("task", DEFAULT_TASK)), "model")
    task: Task = parser.instantiate(parser.parse_object({"model": config["model"]})).model
    checkpoint = load_checkpoint(path)
    check_parameters(checkpoint, task, path)
    task.load_state_dict(checkpoint["state_dict"])
    return task.net.eval()


def _drop_pretrained(maker: dict[str, Any]) -> None:
    """Make a network, and one inside it, without weights: they come from the checkpoint."""
    arguments = maker.get("init_args") or {}
    if "pretrained" in arguments:
        arguments["pretrained"] = False
    if isinstance(arguments.get("net"), dict):
        _drop_pretrained(arguments["net"])


def _write(plan: Plan, config: dict[str, Any], names: tuple[str, ...], folder: Path, method: str) -> None:
    write_groupings(folder / "groupings.yaml", plan.groupings, names)
    content = {
        "method": method,
        "images": plan.images,
        "miou": plan.miou,
        "chosen": plan.chosen,
        "curves": {name: dict(zip(curve.sizes, curve.miou, strict=True)) for name, curve in plan.curves.items()}
        | {"out": dict(zip(plan.output.sizes, plan.output.miou, strict=True))},
    }
    write_atomically(
        folder / "curves.json", lambda path: path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    )
    title = f"# The second phase of HS3, after an analysis of {plan.images} images; see groupings.yaml.\n"
    text = title + yaml.safe_dump(second_phase(config, plan.groupings), sort_keys=False)
    write_atomically(plan.recipe, lambda path: path.write_text(text, encoding="utf-8"))
    try:
        from hggraph.viz import save_figure, trade_off_figure

        figure = trade_off_figure(plan.curves, plan.chosen, plan.output)
    except ImportError:
        return
    save_figure(figure, folder / "trade_off.png")


def _data_of(config: dict[str, Any]) -> ImageData:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageData, "data")
    data: ImageData = parser.instantiate(parser.parse_object({"data": config["data"]})).data
    return data


def _analysis_images(data: ImageData, config: dict[str, Any]) -> HeldOut:
    """Return the images held out, once they are neither trained nor validated on."""
    if data.splits["train"] != "reduced" or not isinstance(data.dataset("train"), HeldOut):
        raise ValueError(
            f"The run has no images held out for analysis: expected data.dataset hggraph.data.HeldOut and "
            f"data.train_split 'reduced', got {config['data']['dataset']} and {data.splits['train']!r}. Train the "
            f"first phase so; recipes/camvid_hs3_phase_one.yaml is an example."
        )
    found: Any = data.makers["train"](str(Path(data.root).expanduser()), "analysis")
    both = sorted(set(found.names) & {str(name) for name in getattr(data.dataset("val"), "names", ())})
    if both:
        raise ValueError(
            f"Analysis and validation (data.val_split {data.splits['val']!r}) must have no image in common, got "
            f"{len(both)}: {', '.join(both[:3])}."
        )
    found.transform = data.transforms["val"]
    return found


def _of_all_classes(features: Tensor, names: tuple[str, ...]) -> Tensor:
    missing = [names[number] for number in features.isnan().any(1).nonzero().flatten().tolist()]
    if missing:
        raise ValueError(
            f"In the images for analysis no feature of a tap lies on {', '.join(missing)}; hold more images out, or by "
            f"another seed."
        )
    return features


def _check_occurring(confusion: Tensor, names: tuple[str, ...], absent: str) -> None:
    missing = [names[number] for number in (confusion.sum(1) == 0).nonzero().flatten().tolist()]
    if missing and absent == "error":
        raise ValueError(
            f"The images for analysis have no {', '.join(missing)}, so nothing says what they are confused with. Hold "
            f"more images out, by another seed, or keep these classes apart with --absent own."
        )


def _sizes(confusion: Tensor) -> range:
    """Return the sizes that groupings can have: classes that do not occur take one group each."""
    empty = int((confusion.sum(1) == 0).sum())
    return range(max(2, empty + 1), len(confusion) + 1)
