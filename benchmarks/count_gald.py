"""Parameters and multiply-adds of every configuration of GALD, beside those of the paper's Table IV.

    python -m hggraph.benchmarks.count_gald [BACKBONE...] [--size H W] [--markdown]

Without auxiliary heads, 19 classes. Shapes say it all: nothing is computed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.table import Table

from hggraph.models import count, gald, hg_resnet

__all__ = ["configurations", "main", "rows"]

AGGREGATIONS = ("aspp", "psp", "non_local", "cgnl", "hg")
PUBLISHED = {  # Tables IV and VI, millions of parameters
    ("resnet50", "aspp", None, "ga_ld"): "47.5",
    ("resnet50", "aspp", "v1", "ga_ld"): "47.9",
    ("resnet50", "aspp", "v2", "ga_ld"): "49.8",
    ("resnet101", "aspp", None, "ga_ld"): "65.4",
    ("resnet101", "cgnl", "v1", "ga_ld"): "65.3",
    ("resnet101", "aspp", "v2", "ga_ld"): "66.8",
}


def configurations() -> Iterator[tuple[str | None, str | None, str]]:
    """Yield aggregation, distribution and arrangement."""
    for distribution in ("v1", "v2"):
        yield None, distribution, "ga_ld"
    for aggregation in AGGREGATIONS:
        yield aggregation, None, "ga_ld"
        for distribution in ("v1", "v2"):
            for arrangement in ("ga_ld", "ld_ga", "parallel"):
                yield aggregation, distribution, arrangement


def rows(backbone: str, size: tuple[int, int]) -> Iterator[tuple[str, ...]]:
    """Yield a backbone's configurations: their names, M of parameters and G of multiply-adds, and the paper's M."""
    depth, hg_stages = int(backbone.rpartition("resnet")[2]), (4,) if backbone.startswith("hg_") else ()
    with torch.device("meta"):
        plain = hg_resnet(depth, hg_stages=hg_stages, aux=False)
    yield (backbone, "", "", "", *_counts(plain, size), "")
    for aggregation, distribution, arrangement in configurations():
        with torch.device("meta"):
            net = gald(backbone, aggregation, distribution, arrangement, aux=False)
        published = PUBLISHED.get((backbone, aggregation, distribution, arrangement), "")
        both = aggregation is not None and distribution is not None
        names = (backbone, aggregation or "", distribution or "", arrangement if both else "")
        yield (*names, *_counts(net, size), published)


def _counts(net: torch.nn.Module, size: tuple[int, int]) -> tuple[str, str]:
    total = count(net, size)[-1]
    return f"{total.parameters / 1e6:.2f}", f"{total.macs / 1e9:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("backbones", nargs="*", default=["resnet50"], help="resnet50, hg_resnet50, ...")
    parser.add_argument("--size", nargs=2, type=int, default=(512, 512), metavar=("H", "W"), help="image size")
    parser.add_argument("--markdown", action="store_true", help="print a table for a document")
    args = parser.parse_args(argv)
    columns = (
        "backbone",
        "aggregation",
        "distribution",
        "arrangement",
        "parameters, M",
        "multiply-adds, G",
        "paper, M",
    )
    found = [row for backbone in args.backbones for row in rows(backbone, tuple(args.size))]
    if args.markdown:
        lines = [columns, ("---",) * len(columns), *found]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return 0
    table = Table(*columns, title=f"{args.size[0]} x {args.size[1]} pixels", title_justify="left")
    for row in found:
        table.add_row(*row)
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
