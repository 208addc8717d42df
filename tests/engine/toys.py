"""A data set and a network that train in a blink, and a recipe for them."""

from pathlib import Path

import lightning
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hggraph import SoftSLIC
from hggraph.data import EvalTransform, FolderDataset
from hggraph.models._network import SegmentationNetwork
from hggraph.models.heads import fcn_head
from hggraph.nn import HGBasicBlock, HGStage

CLASSES = 3


class Blocks(torch.utils.data.Dataset):
    """Images of coloured squares with noise: 12 to train, 5 to validate, 4 to test on; `root` names a broken one."""

    classes = ("red", "green", "blue")
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))

    def __init__(self, root: str, split: str) -> None:
        self.transform = None
        self.length = {"train": 12, "val": 5, "test": 4}[split]
        self.broken = int(Path(root).name) if Path(root).name.isdigit() else None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if index == self.broken:
            raise OSError(f"image {index} is broken")
        generator = torch.Generator().manual_seed(index)
        mask = torch.randint(CLASSES, (4, 4), generator=generator).repeat_interleave(8, 0).repeat_interleave(8, 1)
        image = torch.nn.functional.one_hot(mask, CLASSES).permute(2, 0, 1) + 0.3 * torch.randn(CLASSES, 32, 32)
        return {"image": image, "mask": mask, "name": f"image {index}"}


class Scaled:
    """A transform that hggraph does not know."""

    def __call__(self, sample: dict) -> dict:
        return sample | {"image": sample["image"] / 2}


class Same(EvalTransform):
    """Training without anything random: masks as large as the images."""

    def __call__(self, sample: dict) -> dict:
        out = super().__call__(sample)
        mask = torch.nn.functional.interpolate(out["mask"][None, None].float(), out["image"].shape[1:])
        return out | {"mask": mask[0, 0].long()}


def Folder(root: str, split: str) -> FolderDataset:
    """Make a data set of images and masks."""
    return FolderDataset(root, split, classes=["red", "green", "blue"])


class TinyNet(SegmentationNetwork):
    """A convolution, a stage on regions, a head with dropout."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(3, CLASSES)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.stage = HGStage([HGBasicBlock(width, width)], SoftSLIC(16, iterations=1))
        self.head = fcn_head(width, CLASSES)

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict, list]:
        return {"out": self.head(self.stage(self.stem(x)))}, []


class PlainNet(nn.Module):
    """Nothing random and nothing that looks at other images: what processes share does not change it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(x)}


class Fixed(torch.utils.data.Dataset):
    """Images without noise of their own."""

    def __init__(self, root: str, split: str) -> None:
        self.transform = None

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))
        return {"image": image, "mask": image.argmax(0), "name": str(index)}


class PlainData(lightning.LightningDataModule):
    """The same images as any Lightning user would load them."""

    def __init__(self, batch_size: int = 3) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Blocks("", "train"), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Blocks("", "val"), 1)


def write_recipe(folder: Path, net: str = "TinyNet", **trainer: object) -> Path:
    """Write a recipe for the data set and a network and return its path."""
    recipe = {
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False} | trainer,
        "model": {
            "net": {"class_path": f"tests.engine.toys.{net}"},
            "criterion": {
                "class_path": "hggraph.nn.output_loss.OutputLoss",
                "init_args": {"losses": {"class_path": "hggraph.nn.losses.CrossEntropy"}},
            },
            "metric": {"class_path": "hggraph.metrics.confusion.MeanIoU", "init_args": {"num_classes": CLASSES}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {"dataset": "tests.engine.toys.Blocks", "root": "toys", "batch_size": 3, "num_workers": 0},
        "preprocessing": {
            "class_path": "hggraph.data.EvalTransform",
            "init_args": {"mean": [0.0] * 3, "std": [1.0] * 3},
        },
        "save_every": 1,
        "pictures": 0,
    }
    path = folder / "toys.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
