"""scikit-learn's handwritten digits as the data sets of recognition lie: class folders, clips, boxes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SPLITS = {"train": 0, "val": 1}


def pictures(count: int, split: str, classes: int = 10) -> list[tuple[np.ndarray, int]]:
    """Return digits of bytes (8, 8) with their classes; those of another split are others."""
    digits = load_digits()
    chosen = [i for i in range(SPLITS[split], len(digits.target), 2) if digits.target[i] < classes][:count]
    return [((digits.images[i] * 15.9).astype(np.uint8), int(digits.target[i])) for i in chosen]


def class_folder(root: Path, count: int, size: int = 32) -> Path:
    for split in SPLITS:
        for number, (digit, label) in enumerate(pictures(count, split)):
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digit).resize((size, size)).convert("RGB").save(folder / f"{number}.png")
    return root


def video_folder(root: Path, count: int, frames: int = 6, size: int = 32) -> Path:
    """Digits 0 to 2 that move to the right."""
    for split in SPLITS:
        for number, (digit, label) in enumerate(pictures(count, split, 3)):
            folder = root / split / str(label) / str(number)
            folder.mkdir(parents=True)
            for time in range(frames):
                frame = Image.new("L", (size, size))
                frame.paste(Image.fromarray(digit).resize((size // 2, size // 2)), (2 * time, size // 4))
                frame.convert("RGB").save(folder / f"img_{time:03}.png")
    return root


def coco_folder(root: Path, count: int, size: int = 96) -> Path:
    """One digit, 0 or 1, on each photo of noise, and its box."""
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in SPLITS:
        (root / f"{split}2017").mkdir()
        images, objects = [], []
        for number, (digit, label) in enumerate(pictures(count, split, 2), start=1):
            photo = Image.fromarray(generator.integers(0, 60, (size, size, 3), dtype=np.uint8))
            side = int(generator.integers(size // 3, size // 2))
            x, y = (int(v) for v in generator.integers(0, size - side, 2))
            photo.paste(Image.fromarray(digit).resize((side, side)).convert("RGB"), (x, y))
            photo.save(root / f"{split}2017" / f"{number}.jpg")
            images.append({"id": number, "file_name": f"{number}.jpg", "height": size, "width": size})
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            objects.append({"id": number, "image_id": number, "category_id": label + 1} | box)
        categories = [{"id": 1, "name": "zero"}, {"id": 2, "name": "one"}]
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root
