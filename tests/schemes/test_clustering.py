"""Planted groups are found; sizes, seeds and classes that never occur; scikit-learn's own spectral clustering."""

import pytest
import torch

from hggraph.schemes.hs3 import Grouping, constant_ratio, kmeans_groupings, spectral_groupings

sklearn = pytest.importorskip("sklearn.cluster", reason="needs scikit-learn")


def planted(groups, inside=40.0, outside=1.0, seed=0):
    """Return counts in which the classes of a group are taken for one another, and few others are."""
    generator = torch.Generator().manual_seed(seed)
    classes = sum(len(group) for group in groups)
    confusion = outside * torch.rand(classes, classes, generator=generator)
    for group in groups:
        confusion[torch.tensor(group)[:, None], torch.tensor(group)] += inside * (
            0.5 + torch.rand(len(group), len(group), generator=generator)
        )
    return (confusion + torch.diag(1000 * torch.rand(classes, generator=generator) + 200)).round().long()


BLOCKS = [[0, 4, 7], [1, 2], [3, 8, 9, 10], [5, 6, 11]]


@pytest.mark.parametrize("normalize", ["none", "rows"])
@pytest.mark.parametrize("seed", range(3))
def test_planted_blocks_are_found(normalize, seed):
    found = spectral_groupings(planted(BLOCKS, seed=seed), [4], normalize=normalize)
    assert found[4] == Grouping(BLOCKS)


def test_blocks_of_rare_classes_are_found_by_rows():
    """A pair of classes a thousand times rarer than the others: normalised, it is as clear as theirs."""
    confusion = planted(BLOCKS).double()
    confusion[[1, 2]] /= 1000
    assert spectral_groupings(confusion, [4], normalize="rows")[4] == Grouping(BLOCKS)


def test_as_scikit_learn():
    confusion = planted(BLOCKS)
    affinity = ((confusion + confusion.T) / 2).double().numpy()
    for size in (2, 3, 4):
        theirs = sklearn.SpectralClustering(size, affinity="precomputed", random_state=0).fit_predict(affinity)
        found = spectral_groupings(confusion, [size], normalize="none")
        assert found[size] == Grouping.of_labels(theirs.tolist())


def test_all_sizes():
    confusion = planted(BLOCKS)
    found = spectral_groupings(confusion)
    assert list(found) == list(range(2, 13)) and all(len(grouping) == size for size, grouping in found.items())
    assert found[12] == Grouping.identity(12) and spectral_groupings(confusion) == found
    assert spectral_groupings(confusion, [1])[1] == Grouping([list(range(12))])


def test_a_perfect_network_confuses_nothing():
    """No two classes belong together: any grouping of each size will do, and nothing becomes NaN."""
    found = spectral_groupings(100 * torch.eye(5, dtype=torch.long))
    assert [len(grouping) for grouping in found.values()] == [2, 3, 4, 5]


def test_classes_that_never_occur():
    confusion = planted(BLOCKS)
    confusion[[2, 5]] = 0
    with pytest.raises(ValueError, match=r"Classes \[2, 5\] never occur"):
        spectral_groupings(confusion)
    found = spectral_groupings(confusion, range(3, 13), absent="own")
    assert all((2,) in grouping.groups and (5,) in grouping.groups for grouping in found.values())
    assert set(found[6].groups) == {(2,), (5,), (0, 4, 7), (1,), (3, 8, 9, 10), (6, 11)}
    with pytest.raises(ValueError, match="2 groups are too few for 2 classes that never occur"):
        spectral_groupings(confusion, [2], absent="own")


@pytest.mark.parametrize(
    ("confusion", "sizes", "message"),
    [
        (torch.ones(3, 4), None, r"shape \(K, K\) with K >= 2"),
        (torch.ones(3), None, r"\(K, K\)"),
        (-torch.ones(3, 3), None, "finite counts >= 0"),
        (torch.full((3, 3), torch.nan), None, "finite counts >= 0"),
        (torch.ones(3, 3), [4], r"numbers of groups from 1 to 3, the classes, got \[4\]"),
        (torch.ones(3, 3), [0], r"got \[0\]"),
        (torch.ones(3, 3), [], r"got \[\]"),
    ],
)
def test_wrong_matrices(confusion, sizes, message):
    with pytest.raises(ValueError, match=message):
        spectral_groupings(confusion, sizes)


def test_kmeans_finds_clusters_of_features():
    generator = torch.Generator().manual_seed(1)
    centres = torch.eye(4, 16) * 10
    features = torch.empty(12, 16)
    for centre, group in zip(centres, BLOCKS, strict=True):
        features[group] = centre + 0.1 * torch.randn(len(group), 16, generator=generator)
    found = kmeans_groupings(features)
    assert found[4] == Grouping(BLOCKS) and list(found) == list(range(2, 13))
    with pytest.raises(ValueError, match="3 different vectors for as many groups, got 2"):
        kmeans_groupings(torch.tensor([[0.0], [1.0], [1.0]]), [3])
    with pytest.raises(ValueError, match="finite vectors of at least 2 classes"):
        kmeans_groupings(torch.tensor([[0.0], [torch.nan]]))


def test_constant_ratio():
    """Each tap has half of the next one's classes, the last half of the output's; two are the least."""
    assert constant_ratio(40, 2) == (10, 20) and constant_ratio(19, 3, 1.0) == (19, 19, 19)
    assert constant_ratio(5, 3) == (2, 2, 2)
    with pytest.raises(ValueError, match=r"`ratio` in \(0, 1\]"):
        constant_ratio(40, 2, 0)
