"""Eq. 1 literally; the majority of regions by a loop; what a wrong grouping says."""

import pytest
import torch
import torch.nn.functional as F

from hggraph import Assignment, SoftSLIC
from hggraph.nn import CrossEntropy
from hggraph.schemes.hs3 import Grouping, HS3Loss, majority_labels, write_groupings
from hggraph.schemes.hs3.region_tap import RegionLogits, region_loss

GROUPS = [[0, 3], [1], [2]]


def outputs_and_target():
    torch.manual_seed(0)
    target = torch.randint(4, (2, 6, 8))
    target[0, :2] = 255
    return {"out": torch.randn(2, 4, 6, 8, dtype=torch.float64), "tap_2": torch.randn(2, 3, 6, 8).double()}, target


def test_the_loss_is_equation_1():
    outputs, target = outputs_and_target()
    parts = HS3Loss(CrossEntropy(), {"tap_2": GROUPS}, weights={"out": 1.0, "tap_2": 0.25})(outputs, target)
    merged = torch.tensor([0, 1, 2, 0])[target.clamp(max=3)].where(target != 255, 255)
    final = F.cross_entropy(outputs["out"], target, ignore_index=255)
    inner = F.cross_entropy(outputs["tap_2"], merged, ignore_index=255)
    torch.testing.assert_close(parts["loss"], final + 0.25 * inner, rtol=1e-12, atol=1e-12)


def test_without_groupings_it_is_deep_supervision():
    outputs, target = outputs_and_target()
    outputs["tap_2"] = outputs["out"].flip(1)
    parts = HS3Loss({"out": CrossEntropy()})(outputs, {"out": target})
    expected = F.cross_entropy(outputs["tap_2"], target, ignore_index=255)
    torch.testing.assert_close(parts["tap_2"], expected, rtol=1e-12, atol=1e-12)


def test_groupings_of_a_file(tmp_path):
    outputs, target = outputs_and_target()
    write_groupings(tmp_path / "by_hand.yaml", {"tap_2": Grouping(GROUPS)}, ["a", "b", "c", "d"])
    from_file = HS3Loss(CrossEntropy(), str(tmp_path / "by_hand.yaml"))
    assert from_file(outputs, target)["loss"] == HS3Loss(CrossEntropy(), {"tap_2": GROUPS})(outputs, target)["loss"]
    with pytest.raises(FileNotFoundError):
        HS3Loss(CrossEntropy(), str(tmp_path / "nothing.yaml"))


def test_tables_move_and_stay_out_of_checkpoints():
    loss = HS3Loss(CrossEntropy(), {"tap_2": GROUPS}).to("meta")
    assert loss.get_buffer("table_of_tap_2").is_meta and not loss.state_dict()


def test_another_loss_for_taps():
    outputs, target = outputs_and_target()
    loss = HS3Loss(CrossEntropy(), {"tap_2": GROUPS}, tap_loss=CrossEntropy(label_smoothing=0.3))
    plain = HS3Loss(CrossEntropy(), {"tap_2": GROUPS})
    first, second = loss(outputs, target), plain(outputs, target)
    assert first["out"] == second["out"] and first["tap_2"] != second["tap_2"]


def test_all_ignored_is_zero():
    outputs = {"out": torch.randn(1, 4, 4, 4, requires_grad=True), "tap_2": torch.randn(1, 3, 4, 4, requires_grad=True)}
    parts = HS3Loss(CrossEntropy(), {"tap_2": GROUPS})(outputs, torch.full((1, 4, 4), 255))
    parts["loss"].backward()
    assert parts["loss"] == 0 and all(not value.grad.any() for value in outputs.values())


def test_wrong_groupings():
    outputs, target = outputs_and_target()
    with pytest.raises(ValueError, match=r"'tap_2' has 3 classes and its grouping 2; .*tap_classes=\{'2': 2\}"):
        HS3Loss(CrossEntropy(), {"tap_2": [[0, 1], [2, 3]]})(outputs, target)
    with pytest.raises(ValueError, match=r"must name taps of the network, \['tap_2'\], got \['tap_3'\]"):
        HS3Loss(CrossEntropy(), {"tap_3": GROUPS})(outputs, target)
    with pytest.raises(ValueError, match="each class from 0 to 3 once"):
        HS3Loss(CrossEntropy(), {"tap_2": [[0, 3], [1]]})
    HS3Loss(CrossEntropy(), {"tap_3": GROUPS}).eval()({"out": outputs["out"]}, target)  # no taps in eval mode


def test_majority_of_hard_regions_is_a_loop():
    torch.manual_seed(1)
    regions, target = torch.randint(5, (2, 6, 8)), torch.randint(4, (2, 6, 8))
    target[target == 3] = 255
    regions[regions == 4] = 0  # region 4 has no pixels
    target[1][regions[1] == 2] = 255  # and of region 2 no pixel counts
    labels, purity = majority_labels(target, Assignment.from_labels(regions, 5), 3)
    for image in range(2):
        for region in range(5):
            inside = [t for t, r in zip(target[image].flatten(), regions[image].flatten(), strict=True) if r == region]
            counts = [sum(int(t) == k for t in inside) for k in range(3)]
            if not sum(counts):
                assert labels[image, region] == 255 and purity[image, region] == 0
                continue
            assert counts[labels[image, region]] == max(counts)
            assert purity[image, region].item() == pytest.approx(max(counts) / sum(counts), abs=1e-6)


def test_majority_of_soft_regions_is_weighted():
    x, target = torch.randn(1, 3, 8, 8), torch.randint(3, (1, 8, 8))
    assignment = SoftSLIC(num_regions=6)(x)
    dense = assignment.to_dense()[0]  # (P, R)
    shares = torch.stack([dense[target.flatten() == k].sum(0) for k in range(3)], 1)
    labels, purity = majority_labels(target, assignment, 3)
    kept = dense.sum(0) > 1e-3
    assert torch.equal(labels[0][kept], shares.argmax(1)[kept])
    torch.testing.assert_close(purity[0][kept], (shares.amax(1) / shares.sum(1))[kept], rtol=1e-4, atol=1e-5)


def test_labels_of_larger_and_padded_images():
    """A map of a quarter of the size, of images padded to 8 x 12: each pixel has the label at its centre."""
    target = torch.arange(7 * 10).view(1, 7, 10) % 5
    labels, _ = majority_labels(target, Assignment.from_labels(torch.arange(6).view(1, 2, 3), 6), 5, size=(8, 12))
    assert labels.tolist() == [[target[0, 2, 2], target[0, 2, 6], 255, target[0, 6, 2], target[0, 6, 6], 255]]
    with pytest.raises(ValueError, match=r"not be larger than the images, \(4, 12\)"):
        majority_labels(target, Assignment.from_labels(torch.zeros(1, 2, 3, dtype=torch.long), 1), 5, size=(4, 12))


def test_the_loss_of_regions_is_weighted_by_purity():
    torch.manual_seed(2)
    regions, target = torch.randint(4, (2, 6, 6)), torch.randint(3, (2, 6, 6))
    target[:, 0] = 255
    assignment = Assignment.from_labels(regions, 4)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    loss = region_loss(RegionLogits(logits, assignment, (6, 6)), target)
    labels, purity = majority_labels(target, assignment, 3)
    each = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(loss, (purity.double() * each).sum() / purity.sum(), rtol=1e-6, atol=1e-7)
    loss.backward()
    assert logits.grad.abs().sum() > 0


def test_groupings_reach_regions():
    regions = torch.zeros(1, 4, 4, dtype=torch.long)
    target = torch.tensor([0, 1, 1, 2]).repeat(4, 1)[None]  # classes 0 and 2 are one: as many pixels as class 1
    target[0, 0, 1] = 2
    found = RegionLogits(torch.tensor([[[0.0], [5.0]]]), Assignment.from_labels(regions, 1), (4, 4))
    outputs = {"out": torch.randn(1, 3, 4, 4), "tap_hg": found}
    parts = HS3Loss(CrossEntropy(), {"tap_hg": [[1], [0, 2]]})(outputs, target)
    assert Grouping([[1], [0, 2]]).groups == ((0, 2), (1,))
    assert parts["tap_hg"].item() == pytest.approx(5.0067, abs=1e-3)  # the group of 0 and 2, to which 0 is given
    assert list(parts) == ["out", "tap_hg", "loss"]
