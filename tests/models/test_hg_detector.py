"""HG detectors: training, detection, steering, and torchvision's own forward as the reference."""

import copy

import pytest
import torch
from torch import nn

from hggraph import HGStage, SoftSLIC
from hggraph.models import hg_detector, hg_resnet
from hggraph.models.hg_resnet import resnet_trunk
from hggraph.models.pyconv_ssd import pyconv_ssd
from tests.models.norms import randomise_norms


class FeaturesOnly(nn.Module):
    """A backbone as torchvision calls it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)[0]


def small(kind="faster_rcnn", *, hg_stages=(4,), **options):
    trunk = resnet_trunk(18, hg_stages=hg_stages, clusterer=SoftSLIC(4), **options)
    few = {"score_threshold": 0.0, "max_detections": 5}
    detector = hg_detector(kind, trunk, num_classes=3, min_size=64, max_size=96, **few)
    detector.detector.rpn._post_nms_top_n = {"training": 50, "testing": 50}  # instead of 2000 and 1000, for speed
    return detector


def sample(*sizes, dtype=torch.float32):
    images, targets = [torch.rand(3, *size, dtype=dtype) for size in sizes], []
    for height, width in sizes:
        boxes = torch.tensor([[5, 6, 40, 44], [20, 10, 50, 30]], dtype=dtype)
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        masks[:, 12:28, 22:38] = 1
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks})
    return images, targets


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_trains_and_detects(kind):
    detector = small(kind)
    images, targets = sample((64, 80), (60, 53))
    losses = detector(images, targets)
    masks = {"loss_mask"} if kind == "mask_rcnn" else set()
    assert losses.keys() == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} | masks
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    torch.optim.SGD(detector.parameters(), lr=1e-4).step()
    found = detector.eval()(images)
    assert len(found) == 2
    for image, one in zip(images, found, strict=True):
        assert one.keys() == {"boxes", "labels", "scores"} | ({"masks"} if kind == "mask_rcnn" else set())
        assert 0 < len(one["boxes"]) <= 5 and all(value.isfinite().all() for value in one.values())
        assert kind == "faster_rcnn" or one["masks"].shape == (len(one["boxes"]), 1, *image.shape[1:])


@pytest.mark.parametrize("training", [False, True])
def test_dense_is_torchvisions(training):
    detector = small("mask_rcnn", hg_stages=()).train(training)
    assert not any(isinstance(part, HGStage | nn.BatchNorm1d) for part in detector.modules())
    reference = copy.deepcopy(detector.detector)
    reference.backbone = FeaturesOnly(reference.backbone)
    images, targets = sample((64, 80), (50, 91))
    results = []
    for model in (detector, reference):
        torch.manual_seed(1)  # training samples proposals
        results.append(model(images, targets if training else None))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("hg_stages", [(4,), (3, 4), ()])
def test_fold(hg_stages):
    detector = randomise_norms(small(hg_stages=hg_stages)).double().eval()
    folded, (images, _) = detector.fold(), sample((64, 80), dtype=torch.float64)
    torch.testing.assert_close(folded(images), detector(images), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())


@pytest.mark.parametrize(
    ("hg_stages", "stride", "size"), [((4,), 8, (8, 12)), ((4,), 16, (4, 6)), ((3, 4), 16, (8, 12))]
)
def test_regions_and_levels(hg_stages, stride, size):
    detector = small(hg_stages=hg_stages, output_stride=stride).eval()
    images, _ = sample((64, 80), (64, 66))  # padded to 64 x 96
    found, regions = detector(images, return_regions=True)
    assert len(found) == 2 and [name for name, _, _ in regions] == ["hg"]
    assert regions[0].assignment.size == size and regions[0].graph.num_graphs == 2
    maps = detector.detector.backbone(torch.rand(1, 3, 64, 96))[0]
    assert list(maps) == [*"0123"[: 5 - len(hg_stages)], "pool"]
    assert all(y.shape[:2] == (1, 256) for y in maps.values())
    assert maps[str(4 - len(hg_stages))].shape[2:] == size
    losses, regions = detector.train()(*sample((64, 80)), return_regions=True)
    assert all(loss.isfinite() for loss in losses.values()) and len(regions) == 1


def test_attention_steers():
    detector, (images, _) = small().eval(), sample((64, 80), (32, 40))  # the second is resized to 64 x 80
    attention = [torch.zeros(image.shape[1:]) for image in images]
    attention[0][:24, :32] = attention[1][:12, :16] = 1
    given = []
    detector.detector.backbone.register_forward_pre_hook(lambda module, args: given.append(args[1]))
    inside = []
    for maps in (None, attention):
        seeds = detector(images, attention=maps, return_regions=True)[1][0].assignment.seeds
        inside.append(((seeds // 12 < 3) & (seeds % 12 < 4)).sum(1))
    assert (inside[1] > inside[0]).all()
    assert given[0] is None and given[1].shape == (2, 64, 96) and not given[1][:, :, 80:].any()
    assert torch.equal(given[1][0, :, :80], attention[0]) and given[1][1].amin() == 0
    assert torch.equal(given[1][1, :, :80].round(), attention[0])


def test_backbones():
    net = hg_resnet(18, num_classes=2)
    assert hg_detector(backbone=net).detector.backbone.trunk is net.trunk
    trunk = hg_detector().detector.backbone.trunk
    assert trunk.channels == [256, 512, 1024, 2048] and trunk.hg is not None


def test_errors():
    detector, (images, targets) = small(), sample((64, 80))
    for call, match in [
        (lambda: hg_detector("yolo"), "`kind` must be one of"),
        (lambda: hg_detector(num_classes=1), "`num_classes` must be a whole number >= 2, got 1"),
        (lambda: hg_detector(num_classes=True), "`num_classes` must be a whole number >= 2, got True"),
        (lambda: hg_detector(min_size=0), "`min_size` must be a whole number >= 1, got 0"),
        (lambda: hg_detector(max_detections=-1), "`max_detections` must be a whole number >= 1, got -1"),
        (lambda: hg_detector(score_threshold=2.0), r"`score_threshold` must be in \[0, 1\], got 2.0"),
        (
            lambda: hg_detector(backbone=resnet_trunk(18, in_channels=4)),
            "each of the backbone's 4 channels, got 3 and 3",
        ),
        (lambda: detector([]), "`targets` must be given in training mode"),
        (lambda: detector([], []), "`images` must hold at least one image"),
        (lambda: hg_detector(backbone=nn.Linear(2, 3)), "must be an HGResNet or a ResNetTrunk, got Linear"),
        (lambda: resnet_trunk(18, hg_stages=(3,)), "`hg_stages` must be one of"),
        (lambda: resnet_trunk(18, variant="wide"), "`variant` must be one of"),
        (lambda: resnet_trunk(18, output_stride=4), "`output_stride` must be 8, 16 or 32"),
        (lambda: detector(images), "`targets` must be given in training mode"),
        (lambda: detector(images, targets, [torch.rand(8, 10)]), r"size of the map, \(1, 64, 80\), got \(1, 8, 10\)"),
        (lambda: detector(images, targets, [torch.full((64, 80), 2.0)]), r"`attention` must be in \[0, 1\]"),
        (lambda: detector(images, targets, []), "must hold a map for each of 1 images, got 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()


NAN, INF = float("nan"), float("inf")
GOOD, BAD = (
    [10.0, 10, 50, 50],
    ([10.0, 10, 10, 50], [10, 50, 50, 50], [50.0, 10, 10, 50], [NAN, 0, 5, 5], [0, 0, 5, NAN], [0, 0, INF, 5]),
)
WRONG = [
    ({"boxes": torch.tensor([GOOD, box])}, r"`targets\[1\]`: `boxes` must be .* x1 < x2 and y1 < y2, got .* for box 1")
    for box in BAD
] + [
    ({"boxes": torch.rand(4)}, r"`targets\[1\]`: `boxes` must have shape \(N, 4\), got \(4,\)"),
    ({"boxes": None}, r"`targets\[1\]` must have tensors boxes, labels.*, got none for boxes"),
    ({"labels": torch.tensor([1, 0])}, r"`targets\[1\]`: `labels` must be from 1 to 2 .*, got 0 for box 1"),
    ({"labels": torch.tensor([3, 1])}, r"`targets\[1\]`: `labels` must be from 1 to 2 .*, got 3 for box 0"),
    ({"labels": torch.tensor([1])}, r"`labels` must be a whole number for each of 2 boxes, got torch.int64 \(1,\)"),
    ({"labels": torch.tensor([1.0, 2])}, r"`labels` must be a whole number .*, got torch.float32"),
]


def test_targets_that_do_not_fit():
    images, targets = sample((64, 80), (64, 80))
    nets = [small(), small("mask_rcnn"), pyconv_ssd(num_classes=3)]
    for more, text in WRONG:
        for net in nets:
            with pytest.raises(ValueError, match=text):
                net(images, [targets[0], targets[1] | more])
    for net in nets:
        with pytest.raises(ValueError, match=r"`targets` must hold one for each of 2 images, got 1"):
            net(images, targets[:1])
        with pytest.raises(ValueError, match="`targets` must be given in training mode"):
            net(images)
    for masks, text in [
        (torch.zeros(2, 8, 8), r"`masks` must have the shape \(2, 64, 80\) of boxes and image, got \(2, 8, 8\)"),
        (None, "must have tensors boxes, labels, masks, got none for masks"),
    ]:
        with pytest.raises(ValueError, match=text):
            nets[1](images, [targets[0], targets[1] | {"masks": masks}])
