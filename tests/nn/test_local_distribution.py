"""LDv1 against the published code's block and the paper's equation, LDv2 against a literal loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hggraph import Stencil
from hggraph.nn import CGNL, LocalDistributionV1, LocalDistributionV2
from hggraph.ops.local_attention import local_attention_reference
from tests.models.norms import randomise_norms

close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


class PublishedBlock(nn.Module):
    """GALD's block as its code computes it: halve, CGNL, upsample, mask, and the input once more."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()

        def halve():
            return nn.Conv2d(channels, channels, 3, stride=2, groups=channels), nn.BatchNorm2d(channels), nn.ReLU()

        self.down = nn.Sequential(*halve())
        self.t, self.p, self.g = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.z = nn.Conv2d(inner, channels, 1, groups=8, bias=False)
        self.gn = nn.GroupNorm(8, channels)
        self.masks = nn.Sequential(*halve(), *halve(), *halve())

    def forward(self, x):
        small = self.down(x)
        batch, _, h, w = small.shape
        parts = []
        for t, p, g in zip(*(conv(small).chunk(8, 1) for conv in (self.t, self.p, self.g)), strict=True):
            factor = torch.bmm(p.reshape(batch, 1, -1), g.reshape(batch, -1, 1))
            parts.append((factor * t.reshape(batch, 1, -1)).view(batch, -1, h, w))
        context = self.gn(self.z(torch.cat(parts, 1))) + small
        up = F.interpolate(context, x.shape[2:], mode="bilinear", align_corners=True)
        mask = F.interpolate(self.masks(up), x.shape[2:], mode="bilinear", align_corners=True).sigmoid()
        return up + (up + up * mask)


@pytest.mark.parametrize("size", [(31, 31), (33, 40)])
def test_published_block(size):
    """The same shapes of parameters, in the same order, and the same value."""
    theirs = randomise_norms(PublishedBlock(16, 8)).double().eval()
    ours = nn.Sequential(CGNL(16, 8), LocalDistributionV1(16, residual="code")).double().eval()
    state = list(theirs.state_dict().values())
    assert [value.shape for value in ours.state_dict().values()] == [value.shape for value in state]
    ours.load_state_dict(dict(zip(ours.state_dict(), state, strict=True)))
    x = double(2, 16, *size)
    torch.testing.assert_close(ours(x), theirs(x), **close)
    ours[1].residual = "paper"
    torch.testing.assert_close(ours(x), theirs(x) - ours[0](x), **close)


def test_published_sizes():
    """A map of 97 x 97 is halved to 48, 23 and 11."""
    layer, x = LocalDistributionV1(2), torch.rand(1, 2, 97, 97)
    sizes = []
    for part in layer.down:
        x = part(x)
        if isinstance(part, nn.Conv2d):
            sizes.append(x.shape[2])
    assert sizes == [48, 23, 11]


@pytest.mark.parametrize("downsample", ["conv", "bilinear", "average"])
def test_equation(downsample):
    layer = randomise_norms(LocalDistributionV1(3, steps=2, downsample=downsample)).double().eval()
    x = double(2, 3, 13, 18)
    if downsample == "conv":
        small = layer.down(x)
    elif downsample == "average":  # cells of 4 pixels, cut at the border
        rows = [x[:, :, y : y + 4] for y in range(0, 13, 4)]
        small = torch.stack(
            [torch.stack([r[..., i : i + 4].mean((2, 3)) for i in range(0, 18, 4)], -1) for r in rows], 2
        )
    else:
        small = F.interpolate(x, (4, 5), mode="bilinear", align_corners=True)
    mask = 1 / (1 + (-F.interpolate(small, (13, 18), mode="bilinear", align_corners=True)).exp())
    torch.testing.assert_close(layer.mask(x), mask, **close)
    torch.testing.assert_close(layer(x), mask * x + x, **close)
    assert (sum(p.numel() for p in layer.parameters()) > 0) == (downsample == "conv")
    if downsample == "conv":
        assert layer.mask(x).min() >= 0.5  # a ReLU before the sigmoid


@pytest.mark.parametrize(
    "sources", [("both",) * 3, ("global", "both", "both"), ("both", "global", "both"), ("local", "global", "both")]
)
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 2), (5, 1), (1, 4)])
def test_attention(sources, kernel_size, dilation):
    """Table II(c): what queries and keys are made of."""
    query, key, value = sources
    layer = LocalDistributionV2(3, 2, 4, kernel_size=kernel_size, dilation=dilation, query=query, key=key, value=value)
    layer = layer.double()
    x, local = double(2, 3, 6, 7), double(2, 2, 6, 7)
    maps = {"both": torch.cat([x, local], 1), "global": x, "local": local}
    attention = layer.attention
    assert attention.stencil == Stencil.square(kernel_size, dilation=dilation)
    q, k, v = (
        torch.einsum("oc,bchw->bohw", part.weight, maps[source]) + part.bias.view(1, -1, 1, 1)
        for part, source in zip((attention.query, attention.key, attention.value), sources, strict=True)
    )
    want = local_attention_reference(q, k, v, None, attention.stencil.offsets, 4**-0.5, "zero")
    torch.testing.assert_close(layer(x, local), want, **close)
    assert layer.affinity(x, local).shape == (2, 1, kernel_size**2, 6, 7)


def test_attention_to_one_map():
    """The paper's FCN + LDv2: there are no global features beside."""
    layer, x = LocalDistributionV2(3, kernel_size=3, dilation=1).double(), double(1, 3, 4, 5)
    q, k, v = (F.conv2d(x, part.weight[:, :, None, None], part.bias) for part in layer.attention.children())
    want = local_attention_reference(q, k, v, None, Stencil.square(3).offsets, 3**-0.5, "zero")
    torch.testing.assert_close(layer(x), want, **close)


def test_parameters():
    layer = LocalDistributionV2(512, 512)
    assert sum(p.numel() for p in layer.parameters()) == 3 * (1024 * 512 + 512)
    assert sum(p.numel() for p in LocalDistributionV1(512).parameters()) == 3 * 512 * (9 + 1 + 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    masks, attention = LocalDistributionV1(8, steps=2), LocalDistributionV2(8, 8, kernel_size=3)
    x, local = torch.rand(2, 8, 12, 12), torch.rand(2, 8, 12, 12)
    for layer, inputs in ((masks, (x,)), (attention, (x, local))):
        with torch.autocast("cpu", dtype):
            out = layer(*inputs)
        out.float().square().mean().backward()
        assert out.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalDistributionV2(8, 8, kernel_size=4), "`kernel_size` must be odd.*got 4; take 3 or 5"),
        (lambda: LocalDistributionV2(8, 8, dilation=0), "`dilation` must be a whole number >= 1, got 0"),
        (lambda: LocalDistributionV2(8, 8, heads=3), "`heads` must divide .*, got 3, 8, 8"),
        (lambda: LocalDistributionV2(8, 8, query="all"), "`query` must be one of 'both', 'global', 'local', got 'all'"),
        (lambda: LocalDistributionV2(8, -1), "`local_channels` must be a whole number >= 0"),
        (lambda: LocalDistributionV2(8)(torch.rand(1, 8, 12, 20)), "spans 13 pixels, the map has a height of 12"),
        (lambda: LocalDistributionV2(8, 4)(torch.rand(1, 8, 20, 20)), r"`local` 4, .* got \(1, 8, 20, 20\) and None"),
        (lambda: LocalDistributionV2(8)(torch.rand(1, 8, 20, 20), torch.rand(1, 8, 20, 20)), "`local` not be given"),
        (lambda: LocalDistributionV2(8, 4)(torch.rand(1, 8, 20, 20), torch.rand(1, 4, 20, 21)), "maps of one size"),
        (lambda: LocalDistributionV1(8, downsample="max"), "`downsample` must be one of 'conv', 'bilinear', 'average'"),
        (lambda: LocalDistributionV1(8, residual="both"), "`residual` must be one of 'paper', 'code'"),
        (lambda: LocalDistributionV1(8, steps=0), "`steps` must be a whole number >= 1"),
        (lambda: LocalDistributionV1(8)(torch.rand(1, 8, 14, 20)), "at least 15 x 15 pixels for 3 conv.*got 14 x 20"),
        (lambda: LocalDistributionV1(8)(torch.rand(1, 4, 20, 20)), r"`x` must have 8 channels, got shape \(1, 4, 20"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
