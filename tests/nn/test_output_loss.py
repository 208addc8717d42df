"""The loss of a network: names, weights, sizes."""

import pytest
import torch
import torch.nn.functional as F

from hggraph.nn.losses import BinaryCrossEntropy, CrossEntropy
from hggraph.nn.ohem import OhemCrossEntropy
from hggraph.nn.output_loss import OutputLoss
from hggraph.nn.road_loss import OrientationLoss, SoftIoU


@pytest.fixture
def target():
    return torch.randint(4, (2, 9, 13))


@pytest.fixture
def outputs():
    return {"out": torch.randn(2, 4, 9, 13), "aux": torch.randn(2, 4, 3, 4), "regions": [1, 2]}


def full(logits):
    return F.interpolate(logits, (9, 13), mode="bilinear", align_corners=True)


@pytest.mark.parametrize(("weights", "aux"), [(None, 0.4), ({"out": 1.0, "aux": 0.1}, 0.1), ({"out": 2, "aux": 0}, 0)])
def test_weighted_sum(weights, aux, outputs, target):
    parts = OutputLoss(CrossEntropy(), weights)(outputs, target)
    assert list(parts) == ["out", "aux", "loss"]
    torch.testing.assert_close(parts["out"], F.cross_entropy(outputs["out"], target))
    torch.testing.assert_close(parts["aux"], F.cross_entropy(full(outputs["aux"]), target))
    first = 1 if weights is None else weights["out"]
    torch.testing.assert_close(parts["loss"], first * parts["out"] + aux * parts["aux"])


def test_gradients_reach_every_output(outputs, target):
    logits = {name: value.requires_grad_() for name, value in outputs.items() if name != "regions"}
    loss = OutputLoss(CrossEntropy(), {"out": 1.0, "aux": 0.0})
    grads = torch.autograd.grad(loss(logits, target)["loss"], list(logits.values()))
    assert grads[0].any() and torch.equal(grads[1], torch.zeros_like(grads[1]))  # attached, for DDP, and 0


def test_each_output_its_loss(outputs, target):
    loss = OutputLoss({"out": OhemCrossEntropy(0.7, 20), "aux": CrossEntropy()})
    parts = loss(outputs | {"aux_2": outputs["aux"]}, target)
    torch.testing.assert_close(parts["out"], OhemCrossEntropy(0.7, 20)(outputs["out"], target))
    torch.testing.assert_close(parts["aux"], F.cross_entropy(full(outputs["aux"]), target))
    assert torch.equal(parts["aux"], parts["aux_2"])


def test_two_tasks():
    """Auxiliary outputs have the loss, the target and, with a number, the weight that their name says."""
    sizes = {"out": 8, "orientation": 8, "aux": 4, "aux_orientation": 4, "aux_2": 2, "aux_orientation_2": 2}
    outputs = {
        name: torch.randn(1, 37 if "orientation" in name else 2, side, side).requires_grad_()
        for name, side in sizes.items()
    }
    targets = {"out": torch.randint(2, (1, 8, 8)), "orientation": torch.randint(37, (1, 8, 8))}
    losses = {"out": SoftIoU(), "orientation": OrientationLoss()}
    weights = {"out": 1.0, "orientation": 0.5, "aux": 0.25, "aux_orientation": 0.125, "aux_2": 3.0}
    parts = OutputLoss(losses, weights)(outputs, targets)
    total = 0.0
    for name, logits in outputs.items():
        task = "orientation" if "orientation" in name else "out"
        upsampled = F.interpolate(logits, (8, 8), mode="bilinear", align_corners=True)
        torch.testing.assert_close(parts[name], losses[task](upsampled, targets[task]))
        total += weights.get(name, 0.125) * parts[name]
    torch.testing.assert_close(parts["loss"], total)
    for grad in torch.autograd.grad(parts["loss"], list(outputs.values())):
        assert grad.any()
    with pytest.raises(ValueError, match="output 'orientation' has no target: expected 'orientation', got"):
        OutputLoss(losses)(outputs, targets["out"])


def test_training_and_evaluation(outputs, target):
    """A weight without an output is a mistake while training; in evaluation there are no auxiliary outputs."""
    loss = OutputLoss(CrossEntropy(), {"out": 1.0, "aux": 0.4})
    alone = {"out": outputs["out"]}
    with pytest.raises(ValueError, match=r"returned 'out' and not 'aux', which has a weight.*\.eval\(\)"):
        loss(alone, target)
    assert list(loss.eval()(alone, target)) == ["out", "loss"]
    assert list(OutputLoss(CrossEntropy())(alone, target)) == ["out", "loss"]


def test_names_that_do_not_fit(outputs, target):
    with pytest.raises(ValueError, match=r"'aux' has no weight: expected 'aux', got \['out'\]. Give it one, 0 to"):
        OutputLoss(CrossEntropy(), {"out": 1.0})(outputs, target)
    with pytest.raises(ValueError, match=r"'out' has no loss: expected 'out', got \['orientation'\]"):
        OutputLoss({"orientation": CrossEntropy()})(outputs, target)
    for bad in ({}, {"regions": []}, outputs | {"loss": torch.zeros(())}):
        with pytest.raises(ValueError, match="must hold logits"):
            OutputLoss(CrossEntropy())(bad, target)
    for options in (({},), (CrossEntropy(), {})):
        with pytest.raises(ValueError, match="got an empty dict"):
            OutputLoss(*options)
    with pytest.raises(ValueError, match=r"`weights\['aux'\]` must be a number >= 0, got -1"):
        OutputLoss(CrossEntropy(), {"out": 1, "aux": -1})


def test_smaller_target(outputs, target):
    with pytest.raises(ValueError, match="'out' of 9 x 13 pixels cannot be compared with a smaller target, 5 x 13"):
        OutputLoss(CrossEntropy())(outputs, target[:, :5])


def test_all_ignored_and_one_channel():
    logits = {"out": torch.randn(1, 1, 4, 4).requires_grad_(), "aux": torch.randn(1, 1, 1, 1).requires_grad_()}
    parts = OutputLoss(BinaryCrossEntropy())(logits, torch.full((1, 4, 4), 255))
    grads = torch.autograd.grad(parts["loss"], list(logits.values()))
    assert parts["loss"] == 0 and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_upsampling_is_float32(dtype, outputs, target):
    half = {"aux": outputs["aux"].to(dtype)}
    with torch.autocast("cpu", dtype):
        got = OutputLoss(CrossEntropy())(half, target)["aux"]
    torch.testing.assert_close(got, F.cross_entropy(full(half["aux"].float()), target))


def test_it_moves_and_shows():
    loss = OutputLoss(CrossEntropy(class_weights=[1, 2])).to(torch.float64)
    assert loss.losses["out"].class_weights.dtype == torch.float64
    assert "weights=None" in repr(loss) and not loss.state_dict()
