"""The page that goes with published weights, made from what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["model_card"]

HEAD = {"library_name": "hggraph", "pipeline_tag": "image-segmentation", "tags": ["graph-neural-networks", "hggraph"]}


def model_card(config: Mapping[str, Any]) -> str:
    """Return the model card of a published network, in Markdown with a YAML head.

    Every number in it comes from the configuration, which holds the evaluation: the card cannot say anything else.

    Args:
        config: What stands in ``config.json``; see `save_pretrained`.

    Returns:
        The text. Single numbers of the evaluation's ``"results"`` are listed, lists with one number for each class
        make up a table; other entries stay in the configuration alone.

    Example:
        >>> config = {"name": "roads", "model": "hg_orientation", "arguments": {}, "parameters": 1200, "files": {}}
        >>> print(model_card(config | {"evaluation": {"results": {"iou": 0.64249}}}).partition("## Evaluation")[2])
        <BLANKLINE>
        <BLANKLINE>
        | measure | value |
        | --- | --- |
        | iou | 0.6425 |
        <BLANKLINE>
    """
    head: dict[str, Any] = dict(HEAD) | ({"license": config["license"]} if config.get("license") else {})
    evaluation = config.get("evaluation") or {}
    numbers = _single_numbers(evaluation)
    if numbers:
        metrics = [{"type": name, "value": value} for name, value in numbers.items()]
        data = str(evaluation.get("dataset", "unknown"))
        result = {"task": {"type": "image-segmentation"}, "dataset": {"name": data, "type": data}, "metrics": metrics}
        head["model-index"] = [{"name": config["name"], "results": [result]}]
    blocks = [
        # JSON is YAML: nothing in a name can be taken for anything else
        "\n".join(["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---"]),
        f"# {_cell(config['name'])}",
        config.get("description") or "",
        f"`{config['model']}` of [hggraph](https://pypi.org/project/hggraph), {config['parameters']:,} parameters.",
        _block("json", json.dumps(config["arguments"], indent=1)),
        _usage(config),
    ]
    if evaluation:
        said = [f"{key}: {_cell(value)}" for key, value in evaluation.items() if isinstance(value, str)]
        rows = [[name, _number(value)] for name, value in numbers.items()]
        blocks += ["## Evaluation", ", ".join(said), _table(["measure", "value"], rows)]
        per_class = _per_class(evaluation, config.get("classes"))
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
    return _block("python", "\n".join([*lines, 'logits = net(images)["out"]']))


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
