"""The processes of `test_processes.py`: each evaluates its images with each metric and writes what it got.

Started as ``python evaluate_on_processes.py WORLD FOLDER``.
"""

import multiprocessing
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from hggraph.metrics import APLS, BoundaryF, ConfusionMatrix, MeanIoU, RegionQuality, SaliencyMetrics, TopKAccuracy

METRICS = {
    "confusion": lambda: ConfusionMatrix(4),
    "iou": lambda: MeanIoU(4),
    "boundary": lambda: BoundaryF(4),
    "saliency": SaliencyMetrics,
    "top_k": lambda: TopKAccuracy((1, 3)),
    "apls": lambda: APLS(spacing=20),
    "regions": RegionQuality,
}
COUNTS = (5, 7)
# which images each process of so many has, in its own order; one has none
SHARES = {
    (1, 5): [[0, 1, 2, 3, 4]],
    (2, 5): [[4, 1, 0], [3, 2]],
    (3, 5): [[2, 4, 3, 0], [], [1]],
    (1, 7): [[0, 1, 2, 3, 4, 5, 6]],
    (2, 7): [[6, 0], [5, 3, 1, 4, 2]],
    (3, 7): [[1, 6], [5, 0, 4, 2], [3]],
}


def images(name):
    """Return predictions and targets, one of each for every image."""
    generator = torch.Generator().manual_seed(len(name))
    shape = (max(COUNTS), 48, 64)
    if name == "saliency":
        return torch.rand(shape, generator=generator), torch.randint(2, shape, generator=generator)
    if name == "top_k":
        return torch.randn(len(METRICS) + 1, 6, generator=generator), torch.randint(6, (7,), generator=generator)
    if name == "regions":
        coarse = torch.randint(9, (2, shape[0], 12, 16), generator=generator)
        return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    if name == "apls":
        target = torch.zeros(shape, dtype=torch.long)
        for index, mask in enumerate(target):
            mask[10 + 4 * index] = mask[:, 5 + 8 * index] = 1
        prediction = target.clone()
        prediction[:, 20:30, 20:40] = 0
        return prediction, target
    target = torch.randint(4, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < 0.1] = 255
    return torch.randn(shape[0], 4, *shape[1:], generator=generator), target


def evaluate(name, share, group=None):
    """Return what a metric gives for these images of this process, and those of the others of its group."""
    metric = METRICS[name]()
    metric.process_group = group
    prediction, target = images(name)
    for index in share:
        at = index if name == "regions" else slice(index, index + 1)  # it takes one image at a time
        metric.update(prediction[at], target[at])
    result = metric.compute()
    return result if isinstance(result, dict) else {"counts": result}


def coco(share, group=None):
    """The same for boxes, with pycocotools."""
    from hggraph.metrics import CocoAP

    metric = CocoAP()
    metric.process_group = group
    for index in share:
        generator = torch.Generator().manual_seed(index)
        box = 30 * torch.rand(4, 2, generator=generator)
        box = torch.cat([box, box + 10 + 40 * torch.rand(4, 2, generator=generator)], 1)
        score = torch.rand(4, generator=generator).round(decimals=1)  # many equal ones
        label = torch.randint(2, (4,), generator=generator)
        moved = box + torch.randn(4, 4, generator=generator) * 3
        metric.update([{"boxes": moved, "scores": score, "labels": label}], [{"boxes": box, "labels": label}])
    return metric.compute()


def main(rank, world, folder):
    torch.set_num_threads(1 + rank % 2)  # another number of threads must not change a bit either
    names = list(METRICS)
    try:
        import pycocotools  # noqa: F401

        names.append("coco")
    except ImportError:
        pass
    results = {}
    if rank == 0:  # before there are other processes
        for name in names:
            for count in COUNTS:
                share = SHARES[1, count][0]
                results[name, count, "alone"] = coco(share) if name == "coco" else evaluate(name, share)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=100),
    )
    groups = {size: dist.new_group(list(range(size))) for size in range(1, world + 1)}
    for size, group in groups.items():
        if rank < size:
            for name in names:
                for count in COUNTS:
                    share = SHARES[size, count][rank]
                    results[name, count, size] = coco(share, group) if name == "coco" else evaluate(name, share, group)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    world, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    # a fork spares the others the imports; nothing has run on several threads yet
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=main, args=(rank, world, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
