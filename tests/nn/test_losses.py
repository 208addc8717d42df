"""What holds for every loss, and cross-entropy against torch and literal sums."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.nn.losses import BinaryCrossEntropy, CrossEntropy, cross_entropy
from hggraph.nn.ohem import OhemCrossEntropy
from hggraph.nn.output_loss import OutputLoss
from hggraph.nn.road_loss import OrientationLoss, SoftIoU
from hggraph.nn.saliency_loss import SaliencyLoss


class Whole(torch.nn.Module):
    """`OutputLoss` as one of the others, with logits of half the size."""

    def __init__(self):
        super().__init__()
        self.loss = OutputLoss(CrossEntropy())

    def forward(self, logits, target):
        return self.loss({"out": logits, "aux": logits[:, :, ::2, ::2]}, target)["loss"]


# each loss, channels of its logits, and how many labels there are
LOSSES = {
    "cross_entropy": (CrossEntropy(), 5, 5),
    "weights": (CrossEntropy(class_weights=[1, 2, 0.5, 3, 0], label_smoothing=0.1), 5, 5),
    "ohem": (OhemCrossEntropy(0.7, 6), 5, 5),
    "ohem_hrnet": (OhemCrossEntropy(0.9, 6, rule="hrnet"), 5, 5),
    "ohem_weights": (OhemCrossEntropy(0.3, 1000, class_weights=[1, 2, 0.5, 3, 1]), 5, 5),
    "binary": (BinaryCrossEntropy(), 1, 2),
    "binary_two": (BinaryCrossEntropy(positive_weight=3), 2, 2),
    "saliency": (SaliencyLoss(), 1, 2),
    "saliency_two": (SaliencyLoss(bce_weight=0.5, smooth=0.1), 2, 2),
    "soft_iou": (SoftIoU(), 3, 3),
    "soft_iou_one": (SoftIoU(), 1, 2),
    "orientation": (OrientationLoss(5), 5, 5),
    "output": (Whole(), 5, 5),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def case(name, *, batch=2, size=(5, 6), ignored=0.3, dtype=torch.float32):
    loss, channels, labels = LOSSES[name]
    logits = torch.randn(batch, channels, *size).mul(2).to(dtype).requires_grad_()
    target = torch.randint(labels, (batch, *size))
    target[torch.rand(target.shape) < ignored] = 255
    return loss, logits, target


@every_loss
def test_scalar_with_gradients(name):
    loss, logits, target = case(name)
    value = loss(logits, target)
    assert value.shape == () and value.dtype == torch.float32
    value.backward()
    assert logits.grad.abs().sum() > 0
    # an ignored pixel has no say (of the smaller output of "output" its neighbours have)
    if name != "output":
        assert (logits.grad.movedim(1, -1)[target == 255] == 0).all()
        changed = torch.where((target == 255)[:, None], 100.0, logits.detach())
        assert torch.equal(loss(changed, target), value.detach())


@every_loss
def test_all_ignored_is_zero(name):
    for batch, size in [(2, (5, 6)), (1, (1, 1)), (0, (5, 6))]:
        loss, logits, target = case(name, batch=batch, size=size, ignored=1.1)
        for scale in (1.0, 1e4):
            value = loss(logits * scale, target)
            (grad,) = torch.autograd.grad(value, logits)
            assert value.item() == 0 and torch.equal(grad, torch.zeros_like(grad)), scale


@every_loss
def test_one_image_all_ignored(name):
    """An image without labels in a batch changes nothing, as if it were not there."""
    loss, logits, target = case(name)
    target[1] = 255
    torch.testing.assert_close(loss(logits, target), loss(logits[:1], target[:1]))


@every_loss
def test_one_pixel(name):
    loss, logits, target = case(name, batch=1, size=(1, 1), ignored=0)
    value = loss(logits, target.clamp(max=LOSSES[name][2] - 2))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


@every_loss
def test_gradient(name):
    # which pixels OHEM keeps does not change within the small steps of gradcheck
    loss, logits, target = case(name, size=(2, 3), dtype=torch.float64)
    assert loss(logits, target).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


@every_loss
def test_layouts_and_label_types(name):
    loss, logits, target = case(name)
    value = loss(logits, target)
    last = logits.detach().to(memory_format=torch.channels_last)
    strided = torch.randn(2, logits.shape[1], 10, 12)
    strided[:, :, ::2, ::2] = logits.detach()
    turned = target.mT.contiguous().mT
    for other in (last, strided[:, :, ::2, ::2]):
        torch.testing.assert_close(loss(other, turned), value.detach())
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(loss(logits, target.to(dtype)), value)
    one = target[:, :1].expand(-1, 5, -1)
    torch.testing.assert_close(loss(logits, one), loss(logits, one.clone()))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_logits_under_autocast(name, dtype):
    """Forward and backward stay finite at the largest numbers, right and wrong; the sums are float32."""
    loss, channels, labels = LOSSES[name]
    logits = torch.full((2, channels, 4, 4), 6e4)
    logits[:, :, :2] = -6e4
    logits[:, 0, :, ::2] = 6e4
    logits[:, -1, :, 1::2] *= -1
    target = torch.arange(32).reshape(2, 4, 4) % labels
    leaf = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        value = loss(leaf * 1, target)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()
    assert leaf.grad.isfinite().all()
    torch.testing.assert_close(value, loss(leaf.detach().float(), target), rtol=1e-6, atol=1e-6)


@every_loss
def test_autocast_equals_float32(name):
    loss, logits, target = case(name, size=(40, 50))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(logits, target), loss(logits.detach(), target))


@every_loss
def test_bad_input(name):
    loss, logits, target = case(name)
    labels = LOSSES[name][2]
    for value in (labels, 254, -1):
        wrong = target.clone()
        wrong[1, 2, 3] = value
        with pytest.raises(ValueError, match=rf"\[0, {labels}\) or 255 \(ignored\), got {value} at 1 of 60 pixels"):
            loss(logits, wrong)
    for other in (target.float(), target > 1, target.to(torch.int8)):
        with pytest.raises(TypeError, match=r"`target` must be a tensor of labels.*got torch\.(float32|bool|int8)"):
            loss(logits, other)
    with pytest.raises(ValueError, match=r"must have shape \(2, 5, 6\).*got \(2, 1, 5, 6\)"):
        loss(logits, target[:, None])
    with pytest.raises(ValueError, match=r"smaller target, 3 x 4|must have shape \(2, 5, 6\).*got \(2, 3, 4\)"):
        loss(logits, target[:, :3, :4])
    with pytest.raises(TypeError, match=r"must be a floating-point tensor, got torch\.int64"):
        loss(logits.long(), target)


@every_loss
def test_compiles_whole(name):
    loss, logits, target = case(name)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, expected = compiled(logits, target), loss(logits, target)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, logits), torch.autograd.grad(expected, logits))


@every_loss
def test_no_data_reaches_the_host(name):
    """On the meta device there are no data to read: a branch on them would raise."""
    loss, logits, target = case(name)
    assert copy.deepcopy(loss).to("meta")(logits.detach().to("meta"), target.to("meta")).shape == ()


@settings(max_examples=50)
@given(st.integers(1, 3), st.integers(2, 6), st.integers(1, 7), st.integers(1, 7), st.data())
def test_cross_entropy_is_torch(batch, classes, height, width, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    logits = torch.randn(batch, classes, height, width, dtype=torch.float64, generator=generator)
    target = torch.randint(classes, (batch, height, width), generator=generator)
    target[0, 0, 0] = 0
    target[torch.rand(target.shape, generator=generator) < data.draw(st.sampled_from([0, 0.5]))] = 255
    weights = data.draw(st.sampled_from([None, torch.rand(classes, generator=generator) + 0.1]))
    smoothing = data.draw(st.sampled_from([0.0, 0.2]))
    loss = CrossEntropy(255, weights, smoothing)
    double = None if weights is None else weights.double()
    expected = F.cross_entropy(logits, target, double, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, target), expected.nan_to_num(0), rtol=1e-12, atol=1e-12)


def test_cross_entropy_is_the_literal_sum():
    logits = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    target = torch.tensor([[[0, 1, 2, 9], [9, 1, 1, 0]], [[2, 2, 9, 0], [1, 9, 9, 9]]])
    weights = [0.5, 2.0, 1.0]
    top = below = 0.0
    for b in range(2):
        for y in range(2):
            for x in range(4):
                label = int(target[b, y, x])
                if label == 9:
                    continue
                powers = [math.exp(v) for v in logits[b, :, y, x].tolist()]
                top -= weights[label] * math.log(powers[label] / sum(powers))
                below += weights[label]
    assert CrossEntropy(9, weights)(logits, target).item() == pytest.approx(top / below, rel=1e-12)


def test_whole_images_and_ignored_class():
    """Labels of images work as those of pixels, and a class of the network may be the ignored one."""
    logits = torch.randn(4, 3)
    target = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(logits, target))
    torch.testing.assert_close(cross_entropy(logits, target, ignore_index=0), F.cross_entropy(logits[1:3], target[1:3]))
    assert OhemCrossEntropy(min_kept=10)(logits, target) == cross_entropy(logits, target)


def test_absent_classes_of_weight_zero():
    loss = CrossEntropy(class_weights=[0.0, 1.0])
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    value = loss(logits, torch.zeros(1, 2, 2, dtype=torch.long))
    value.backward()
    assert value == 0 and not logits.grad.any()


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_binary_is_torch(weight):
    logits = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    target = torch.randint(2, (2, 4, 5))
    target[0, :2] = 255
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0][target < 2], target[target < 2].double(), pos_weight=torch.tensor(weight)
    )
    loss = BinaryCrossEntropy(positive_weight=weight)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-12, atol=0)
    # two channels: their difference, and with weight 1 the softmax's cross-entropy
    shift = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    two = torch.cat([shift, logits + shift], 1)
    torch.testing.assert_close(loss(two, target), expected, rtol=1e-12, atol=0)
    if weight == 1:
        torch.testing.assert_close(loss(two, target), cross_entropy(two, target), rtol=1e-12, atol=0)


def test_wrong_number_of_classes():
    target = torch.zeros(1, 2, 2, dtype=torch.long)
    for loss in (CrossEntropy(), OhemCrossEntropy()):
        with pytest.raises(ValueError, match=r"at least 2 classes.*BinaryCrossEntropy"):
            loss(torch.zeros(1, 1, 2, 2), target)
    for loss in (BinaryCrossEntropy(), SaliencyLoss()):
        with pytest.raises(ValueError, match=r"a sigmoid's.*got \(1, 3, 2, 2\).*CrossEntropy"):
            loss(torch.zeros(1, 3, 2, 2), target)
    with pytest.raises(ValueError, match="a weight for each of 2 classes"):
        CrossEntropy(class_weights=[1, 2, 3])(torch.zeros(1, 2, 2, 2), target)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CrossEntropy(2.5), "`ignore_index` must be a whole number, usually 255, got 2.5"),
        (lambda: CrossEntropy(class_weights=[1, -1]), r"`class_weights` must be .* >= 0.*got \[1, -1\]"),
        (lambda: CrossEntropy(class_weights=[0, 0]), "not all of them 0"),
        (lambda: CrossEntropy(class_weights=[1, math.nan]), "finite"),
        (lambda: CrossEntropy(label_smoothing=1), r"`label_smoothing` must be a number in \[0, 1\), got 1"),
        (lambda: BinaryCrossEntropy(positive_weight=-1), "`positive_weight` must be a number >= 0, got -1"),
        (lambda: SaliencyLoss(smooth=0), "`smooth` must be a number >= 1e-06, got 0"),
        (lambda: OhemCrossEntropy(1.5), r"`threshold` must be a number in \[0, 1\], got 1.5"),
        (lambda: OhemCrossEntropy(min_kept=-1), "`min_kept` must be a whole number >= 0"),
        (lambda: OhemCrossEntropy(rule="focal"), "`rule` must be one of 'gald', 'hrnet', got 'focal'"),
        (lambda: OrientationLoss(1), "`num_orientations` must be a whole number >= 2"),
    ],
)
def test_bad_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_options_are_shown_and_stay_out_of_checkpoints():
    loss = CrossEntropy(class_weights=[1, 2], label_smoothing=0.1)
    assert repr(loss) == "CrossEntropy(ignore_index=255, class_weights=[1.0, 2.0], label_smoothing=0.1)"
    assert not loss.state_dict()
    assert repr(BinaryCrossEntropy(0, 2)) == "BinaryCrossEntropy(ignore_index=0, positive_weight=2)"
    assert repr(OhemCrossEntropy()) == "OhemCrossEntropy(threshold=0.7, min_kept=100000, rule='gald', ignore_index=255)"
