"""Images held out are the same everywhere, in neither half twice, and the data set's own in all else."""

import pytest

from hggraph.data import CamVid, DatasetError, HeldOut
from tests.engine.toys import Blocks


class Named(Blocks):
    def __init__(self, root, split):
        super().__init__(root, split)
        self.names = [f"{split} {number}" for number in range(self.length)]


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.25, 3), (0.9, 11), (0.999, 11), (0.001, 1)])
def test_halves_are_disjoint_and_complete(share, count):
    reduced, analysis = (HeldOut("", split, dataset=Named, share=share) for split in ("reduced", "analysis"))
    assert len(analysis) == count and len(reduced) == 12 - count
    assert sorted(reduced.names + analysis.names) == sorted(Named("", "train").names)
    again = HeldOut("", "analysis", dataset=Named, share=share)
    assert again.names == analysis.names and analysis[0]["name"] == f"image {analysis.indices[0]}"


def test_another_seed_holds_out_others():
    halves = {tuple(HeldOut("", "analysis", dataset=Named, share=0.3, seed=seed).names) for seed in range(8)}
    assert len(halves) > 4


def test_other_splits_are_the_data_sets_own():
    for split in ("train", "val"):
        dataset = HeldOut("", split, dataset=Named)
        assert dataset.names == Named("", split).names and len(dataset) == Named("", split).length
    assert dataset.classes == Named.classes and dataset.palette == Named.palette
    dataset.transform = str
    assert dataset.base.transform is str and dataset.transform is str


def test_a_data_set_without_names():
    names = {split: HeldOut("", split, dataset=Blocks, share=0.25).names for split in ("reduced", "analysis", "val")}
    assert sorted(names["reduced"] + names["analysis"]) == sorted(f"train {number}" for number in range(12))
    assert names["val"] == [f"val {number}" for number in range(5)]


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\), got 1"):
        HeldOut("", dataset=Named, share=1)
    with pytest.raises(DatasetError):
        HeldOut(str(tmp_path), dataset=CamVid)

    class One(Named):
        def __len__(self):
            return 1

    with pytest.raises(DatasetError, match="at least 2 images to split, got 1"):
        HeldOut("", dataset=One)
