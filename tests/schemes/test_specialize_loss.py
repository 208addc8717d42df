"""Equation 1 literally, what it does where nothing counts, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from hggraph.nn import CrossEntropy
from hggraph.schemes.specialize import RULES, SpecializeLoss, relabel, unity_pyramid


def outputs_and_target(size=(20, 27), levels=3, stride=2, batch=2):
    torch.manual_seed(0)
    target = torch.randint(4, (batch, 3, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, : size[0], : size[1]]
    target = target.clone()
    target[0, :2, ::3] = 255
    target[1, 1::7, 2::11] = 2
    coarsest = stride << (levels - 1)
    height, width = (-(-side // coarsest) for side in size)
    shapes = [(height << i, width << i) for i in range(levels)]
    semantic = [torch.randn(batch, 4, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    unity = [torch.randn(batch, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes[:-1]]
    return {"out": None, "semantic": semantic, "unity": unity}, target


@pytest.mark.parametrize("rule", RULES)
def test_the_loss_is_equation_1(rule):
    outputs, target = outputs_and_target()
    parts = SpecializeLoss(stride=2, rule=rule, threshold=0.4)(outputs, target)
    probabilities = [u.sigmoid() for u in outputs["unity"]]
    targets = relabel(unity_pyramid(target, (8, 4, 2)), probabilities, rule=rule, threshold=0.4)
    semantic = [F.cross_entropy(y, k, ignore_index=255) for y, (_, k) in zip(outputs["semantic"], targets, strict=True)]
    unity = []
    for p, (k, _) in zip(probabilities, targets[:-1], strict=True):
        counts = k != 255
        unity.append(F.binary_cross_entropy(p[counts], k[counts].double()))
    torch.testing.assert_close(parts["semantic"], sum(semantic) / 3, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts["unity"], sum(unity) / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts["loss"], sum(semantic) / 3 + sum(unity) / 2, rtol=1e-12, atol=1e-12)
    assert list(parts) == ["semantic", "unity", "loss"]
    parts["loss"].backward()
    assert all(x.grad.any() for x in (*outputs["semantic"], *outputs["unity"]))


def test_rules_differ():
    outputs, target = outputs_and_target()
    found = {SpecializeLoss(stride=2, rule=rule, threshold=0.4)(outputs, target)["loss"].item() for rule in RULES}
    assert len(found) == 3


def test_gradient():
    outputs, target = outputs_and_target((8, 8), 2, 4, 2)

    def loss(*levels):
        return SpecializeLoss(stride=4)({"semantic": levels[:2], "unity": levels[2:]}, target)["loss"]

    assert torch.autograd.gradcheck(loss, (*outputs["semantic"], *outputs["unity"]), fast_mode=True)


@pytest.mark.parametrize("rule", RULES)
def test_all_ignored_is_zero(rule):
    outputs, target = outputs_and_target()
    parts = SpecializeLoss(stride=2, rule=rule)(outputs, torch.full_like(target, 255))
    parts["loss"].backward()
    assert all(value == 0 for value in parts.values())
    assert all(not x.grad.any() for x in (*outputs["semantic"], *outputs["unity"]))


def test_one_level_is_cross_entropy():
    outputs, target = outputs_and_target((16, 16), 1, 1)
    parts = SpecializeLoss(stride=1)({"semantic": outputs["semantic"], "unity": []}, {"out": target})
    want = F.cross_entropy(outputs["semantic"][0], target, ignore_index=255)
    torch.testing.assert_close(parts["loss"], want, rtol=1e-12, atol=1e-12)
    assert parts["unity"] == 0


def test_images_padded_further():
    """A network pads to multiples of 32; beyond those of a coarsest stride of 8 cells have no labels."""
    outputs, target = outputs_and_target((20, 27))
    further = {
        name: [F.pad(x, (0, 0, 0, x.shape[-2] // 3), value=7.0) for x in outputs[name]]
        for name in ("semantic", "unity")
    }
    assert further["semantic"][-1].shape == (2, 4, 16, 16) and outputs["semantic"][-1].shape == (2, 4, 12, 16)
    want = SpecializeLoss(2)(outputs, target)["loss"]
    torch.testing.assert_close(SpecializeLoss(2)(further, target)["loss"], want, rtol=1e-12, atol=1e-12)


def test_another_loss_and_label():
    outputs, target = outputs_and_target()
    plain, smooth = SpecializeLoss(2), SpecializeLoss(2, semantic_loss=CrossEntropy(label_smoothing=0.3))
    first, second = plain(outputs, target), smooth(outputs, target)
    assert first["unity"] == second["unity"] and first["semantic"] != second["semantic"]
    # classes 0 and 1 are also what unity is called: as ignored label they must not disturb it
    other = SpecializeLoss(2, ignore_index=1)(
        outputs, torch.where(target == 255, 1, torch.where(target == 1, 0, target))
    )
    same = plain(outputs, torch.where(target == 1, 0, target))
    torch.testing.assert_close(other["loss"], same["loss"], rtol=0, atol=0)


def test_certain_logits():
    """Sigmoids of 60 are 1 in float32, and their logarithms would be lost."""
    loss = SpecializeLoss(stride=1)
    target = torch.tensor([[[0, 1], [1, 0]]])
    u = torch.full((1, 1, 1), 60.0, dtype=torch.bfloat16, requires_grad=True)
    semantic = [torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 2, 2)]
    parts = loss({"semantic": semantic, "unity": [u]}, target)
    parts["unity"].backward()
    assert parts["unity"] == 60 and u.grad == 1


OUTPUTS, TARGET = outputs_and_target()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpecializeLoss(stride=0), "`stride` must be a whole number >= 1, got 0"),
        (lambda: SpecializeLoss(rule="all"), "`rule` must be one of"),
        (lambda: SpecializeLoss(threshold=-1), "`threshold` must be in .* got -1"),
        (lambda: SpecializeLoss(ignore_index=1.5), "`ignore_index` must be a whole number"),
        (lambda: SpecializeLoss()({"out": 0}, TARGET), r"pyramids 'semantic' and 'unity', got \['out'\].*`.train\(\)`"),
        (lambda: SpecializeLoss()({"semantic": [], "unity": []}, TARGET), "got 0 and 0"),
        (lambda: SpecializeLoss(2)(OUTPUTS | {"unity": []}, TARGET), "all but the finest under 'unity', got 3 and 0"),
        (
            lambda: SpecializeLoss(4)(OUTPUTS, TARGET),
            r"level 0, of stride 16, must have shape \(2, C, 2, 2\) for a target of shape \(2, 20, 27\), "
            r"got \(2, 4, 3, 4\)",
        ),
        (lambda: SpecializeLoss(2)(OUTPUTS, TARGET + 4), r"Labels must be in \[0, 4\) or 255 \(ignored\)"),
        (
            lambda: SpecializeLoss(2)(OUTPUTS, {"mask": TARGET}),
            r"`target` must hold labels under 'out', got \['mask'\]",
        ),
        (lambda: SpecializeLoss(2)(OUTPUTS, TARGET[0]), r"`target` must have shape \(B, H, W\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
