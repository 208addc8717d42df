"""ASPP, pyramid pooling, the non-local block and CGNL against their equations, and published sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hggraph.nn import ASPP, CGNL, NonLocal, PyramidPooling
from tests.models.norms import randomise_norms

close = {"rtol": 1e-9, "atol": 1e-9}
SMALL = {
    "aspp": lambda: ASPP(8, 6, branch_channels=4, dilations=(2, 3)),
    "psp": lambda: PyramidPooling(8, 6, bins=(1, 2, 3)),
    "non_local": lambda: NonLocal(8, 6, key_channels=4),
    "cgnl": lambda: CGNL(8, groups=2),
    "cgnl, whole size": lambda: CGNL(8, groups=4, downsample=False),
}


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def made(name):
    module = randomise_norms(SMALL[name]()).double().eval()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight)
    return module


def normalised(x, norm):
    shape = (1, -1, 1, 1)
    y = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return y * norm.weight.view(shape) + norm.bias.view(shape)


def conv1x1(x, conv):
    return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_published_parameters():
    """GALD's code: 15.86 M on 2048 channels and 4.46 M on 512; CGNL with its downsampling 0.41 M more than 0.006 M."""
    assert f"{millions(ASPP(2048)):.2f}" == "15.86"
    assert f"{millions(ASPP(512)):.2f}" == "4.46"
    assert sum(p.numel() for p in CGNL(512, 256).parameters()) == (
        3 * 512 * 256 + 256 * 512 // 8 + 2 * 512 + 512 * 9 + 512 + 2 * 512
    )
    assert sum(p.numel() for p in PyramidPooling(2048).parameters()) == (
        4 * (2048 * 512 + 2 * 512) + (2048 + 4 * 512) * 512 + 2 * 512
    )


def test_aspp():
    module, x = made("aspp"), double(2, 8, 9, 7)
    pooled, *convs = module.branches
    mean = normalised(conv1x1(x.mean((2, 3), keepdim=True), pooled.conv[0]), pooled.conv[1]).relu()
    parts = [mean.expand(-1, -1, 9, 7), normalised(conv1x1(x, convs[0][0]), convs[0][1]).relu()]
    for (conv, norm, _), dilation in zip(convs[1:], (2, 3), strict=True):
        parts.append(normalised(F.conv2d(x, conv.weight, padding=dilation, dilation=dilation), norm).relu())
    mixed = normalised(conv1x1(torch.cat(parts, 1), module.project[0]), module.project[1]).relu()
    torch.testing.assert_close(module(x), mixed, **close)


def test_pyramid_pooling():
    module, x = made("psp"), double(2, 8, 6, 9)
    parts = [x]
    for branch, size in zip(module.branches, (1, 2, 3), strict=True):
        rows, columns = x.tensor_split(size, 2), range(size)
        cells = [[row.tensor_split(size, 3)[j].mean((2, 3)) for j in columns] for row in rows]  # sizes divide 6 and 9
        if size == 2:  # halves of 9 overlap in their middle
            cells = [[row[..., :5].mean((2, 3)), row[..., 4:].mean((2, 3))] for row in rows]
        grid = torch.stack([torch.stack(row, -1) for row in cells], -2)
        y = normalised(conv1x1(grid, branch.conv[0]), branch.conv[1])
        parts.append(F.interpolate(y, (6, 9), mode="bilinear", align_corners=True))
    mixed = normalised(conv1x1(torch.cat(parts, 1), module.project[0]), module.project[1]).relu()
    torch.testing.assert_close(module(x), mixed, **close)


def test_non_local():
    module, x = made("non_local"), double(2, 8, 5, 4)
    key = normalised(conv1x1(x, module.key[0]), module.key[1]).flatten(2)
    value = (conv1x1(x, module.value) + module.value.bias.view(1, -1, 1, 1)).flatten(2)
    affinity = (torch.einsum("bci,bcj->bij", key, key) * 4**-0.5).softmax(2)
    attended = torch.einsum("bij,bcj->bci", affinity, value).view(2, 4, 5, 4)
    context = conv1x1(attended, module.context) + module.context.bias.view(1, -1, 1, 1)
    mixed = normalised(conv1x1(torch.cat([context, x], 1), module.project[0]), module.project[1]).relu()
    torch.testing.assert_close(module(x), mixed, **close)
    assert not NonLocal(8).context.weight.any()  # starts without a context


def cgnl_block(module, x):
    """Return CGNL as published: the factor of each group on t, then the grouped convolution."""
    t, p, g = (conv1x1(x, conv).chunk(module.groups, 1) for conv in (module.t, module.p, module.g))
    scaled = torch.cat([(a * b).sum((1, 2, 3), keepdim=True) * c for a, b, c in zip(p, g, t, strict=True)], 1)
    y = F.conv2d(scaled, module.z.weight, groups=module.groups)
    return F.group_norm(y, module.groups, module.norm.weight, module.norm.bias) + x


def test_cgnl():
    module, x = made("cgnl, whole size"), double(2, 8, 5, 4)
    torch.testing.assert_close(module(x), cgnl_block(module, x), **close)
    module, x = made("cgnl"), double(2, 8, 10, 7)
    conv, norm, _ = module.down
    small = normalised(F.conv2d(x, conv.weight, conv.bias, stride=2, groups=8), norm).relu()
    assert small.shape[2:] == (4, 3)
    want = F.interpolate(cgnl_block(module, small), (10, 7), mode="bilinear", align_corners=True)
    torch.testing.assert_close(module(x), want, **close)


@pytest.mark.parametrize("name", SMALL)
def test_layouts_batches_and_gradients(name):
    module, x = made(name), double(3, 8, 9, 12)
    one_by_one = torch.cat([module(image[None]) for image in x])
    around = torch.full((3, 10, 11, 14), torch.nan, dtype=torch.float64)
    around[:, 1:9, 1:10, 1:13] = x
    for same in (x, x.to(memory_format=torch.channels_last), around[:, 1:9, 1:10, 1:13]):
        torch.testing.assert_close(module(same), one_by_one, **close)
    assert module(x[:0]).shape == (0, *one_by_one.shape[1:])
    module.train()
    small = double(2, 8, 4, 3).requires_grad_()
    small.data.mul_(3)
    for part in module.modules():  # not random, and without the corners of ReLU
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0
    assert torch.autograd.gradcheck(lambda x: torch.tanh(module(x)), (small,), eps=1e-7, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_autocast(name, dtype, scale):
    """Large features too: CGNL's sums outgrow half precision."""
    module = SMALL[name]().train()
    with torch.autocast("cpu", dtype):
        out = module(scale * torch.rand(2, 8, 12, 12))
    out.float().square().mean().backward()
    assert out.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_constant_map():
    for name in SMALL:
        out = made(name)(torch.full((1, 8, 12, 12), 0.7, dtype=torch.float64))
        assert out.isfinite().all()


@pytest.mark.parametrize("name", ["aspp", "psp"])
def test_one_image_in_training(name):
    module = SMALL[name]()
    with pytest.raises(ValueError, match=r"one value per channel after global pooling.*SyncBatchNorm"):
        module(torch.rand(1, 8, 6, 6))
    assert module.eval()(torch.rand(1, 8, 6, 6)).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CGNL(512, 250), "`groups` must divide `channels` and `inner_channels`, got 8, 512 and 250"),
        (lambda: CGNL(9, 8), "got 8, 9 and 8"),
        (lambda: CGNL(16)(torch.rand(1, 16, 2, 9)), "at least 3 x 3 pixels to be downsampled, got 2 x 9"),
        (lambda: ASPP(8, dilations=(12, 0)), "`dilations` must be a whole number >= 1, got 0"),
        (lambda: ASPP(0), "`in_channels` must be a whole number >= 1"),
        (lambda: ASPP(8)(torch.rand(8, 4, 4)), r"`x` must have shape \(B, C, H, W\)"),
        (lambda: PyramidPooling(8, bins=()), "`bins` must name at least one grid"),
        (lambda: PyramidPooling(8, bins=(1, 0)), "`bins` must be a whole number >= 1, got 0"),
        (lambda: PyramidPooling(8)(torch.rand(1, 8, 0, 4)), "at least one channel and one pixel"),
        (lambda: NonLocal(8, key_channels=0), "`key_channels` must be a whole number >= 1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
