"""The page that goes with published weights, made from what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["model_card"]

HEAD = {"library_name": "hggraph", "tags": ["graph-neural-networks", "hggraph"]}
PIPELINES = {"classification": "image-classification", "detection": "object-detection"}


def model_card(config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the model card of a published network, in Markdown with a YAML head.

    Every number in it comes from ``metrics.json`` and was measured of these weights: nothing else can stand there.

    Args:
        config: What stands in ``config.json``; see `save_pretrained`.
        metrics: What stands in ``metrics.json``: evaluations. Those whose ``"weights"`` are not the hash of this
            folder's are left out.

    Returns:
        The text. Single numbers of an evaluation's ``"results"`` are listed, lists with one number for each class
        make up a table; other entries stay in the file alone.

    Example:
        >>> config = {"name": "roads", "model": "hg_orientation", "arguments": {}, "parameters": 1200}
        >>> config["files"] = {"model.safetensors": {"size": 4800, "sha256": "f00d"}}
        >>> card = model_card(config, [{"weights": "f00d", "results": {"iou": 0.64249}}])
        >>> print(card.partition("## Evaluation")[2].partition("## Files")[0])
        <BLANKLINE>
        <BLANKLINE>
        | measure | value |
        | --- | --- |
        | iou | 0.6425 |
        <BLANKLINE>
        <BLANKLINE>
    """
    head: dict[str, Any] = dict(HEAD) | ({"license": config["license"]} if config.get("license") else {})
    task = PIPELINES.get(config.get("task", "segmentation"), "image-segmentation")
    head["pipeline_tag"] = task
    sha256 = config["files"].get("model.safetensors", {}).get("sha256")
    measured = [one for one in metrics if one.get("weights") == sha256 and isinstance(one.get("results"), Mapping)]
    results = []
    for one in measured:
        values = [{"type": name, "value": value} for name, value in _single_numbers(one).items()]
        data = str(one.get("dataset", "unknown"))
        results += (
            [{"task": {"type": task}, "dataset": {"name": data, "type": data}, "metrics": values}] if values else []
        )
    if results:
        head["model-index"] = [{"name": config["name"], "results": results}]
    made = config["model"] or config["recipe"]["class_path"]
    blocks = [
        # JSON is YAML: nothing in a name can be taken for anything else
        "\n".join(["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---"]),
        f"# {_cell(config['name'])}",
        config.get("description") or "",
        f"`{_cell(made)}` of [hggraph](https://pypi.org/project/hggraph), {config['parameters']:,} parameters."
        if config["model"]
        else f"`{_cell(made)}`, which is not part of hggraph: it loads with `trust=True` where it can be imported, "
        f"{config['parameters']:,} parameters.",
        _block("json", json.dumps(config["arguments"] if config["model"] else config["recipe"], indent=1)),
        _usage(config),
    ]
    blocks += ["## Evaluation"] if measured else []
    for one in measured:
        said = [f"{key}: {_cell(value)}" for key, value in one.items() if isinstance(value, str) and key != "weights"]
        rows = [[name, _number(value)] for name, value in _single_numbers(one).items()]
        blocks += [", ".join(said), _table(["measure", "value"], rows)]
        per_class = _per_class(one, config.get("classes"))
        if per_class:
            columns = [[_number(value) for value in values] for values in per_class.values()]
            rows = [[str(name), *cells] for name, *cells in zip(config["classes"], *columns, strict=True)]
            blocks.append(_table(["class", *per_class], rows))
    files = [[name, f"{file['size']:,}", f"`{file['sha256']}`"] for name, file in config["files"].items()]
    if files:
        blocks += ["## Files", _table(["file", "bytes", "SHA-256"], files)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _usage(config: Mapping[str, Any]) -> str:
    lines = ["from hggraph.models import from_pretrained", "", 'net = from_pretrained("this folder, or owner/name")']
    if config.get("mean") is not None:
        lines.append(f"# images in [0, 1], less {config['mean']}, over {config['std']}")
    more = "\n\n" + _block("bash", "hggraph predict PHOTOS --model . --out predicted") if config.get("mean") else ""
    return _block("python", "\n".join(lines)) + more


def _single_numbers(evaluation: Mapping[str, Any]) -> dict[str, float]:
    results = evaluation.get("results", {})
    return {name: value for name, value in results.items() if isinstance(value, int | float)}


def _per_class(evaluation: Mapping[str, Any], classes: Sequence[str] | None) -> dict[str, list[float | None]]:
    return {
        name: values
        for name, values in evaluation.get("results", {}).items()
        if classes and isinstance(values, list) and len(values) == len(classes)
        if all(value is None or isinstance(value, int | float) for value in values)
    }


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if math.isfinite(value) else str(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
