"""CIELAB of the fast path against the formula in torch."""

import pytest
import torch
import torch.nn.functional as F

from hggraph.cluster.color import rgb_to_lab
from hggraph.ops import fast

pytest.importorskip("numba")


def formula(photo: torch.Tensor, sigma: float) -> torch.Tensor:
    photo = photo.double()[None]
    if sigma:
        radius = int(-(-2 * sigma // 1))
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / sigma) ** 2)
        taps = (taps / taps.sum()).expand(3, 1, 1, -1)
        photo = F.conv2d(F.pad(photo, (radius, radius, 0, 0), mode="replicate"), taps, groups=3)
        photo = F.conv2d(F.pad(photo, (0, 0, radius, radius), mode="replicate"), taps.mT, groups=3)
    return 0.26 * rgb_to_lab(photo)[0]


@pytest.mark.parametrize("size", [(1, 1), (1, 19), (19, 1), (2, 3), (33, 47)])
@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("bright", [1.0, 0.04])  # dark colours lie where roots are steep
def test_lab(size, sigma, bright):
    photo = torch.rand(3, *size) * bright
    out = fast.lab(photo, sigma)
    assert out.dtype == torch.float32
    # polynomials to 2e-6, times 130 for a
    torch.testing.assert_close(out.double(), formula(photo, sigma), rtol=0, atol=5e-4)


def test_every_level():
    grey = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    torch.testing.assert_close(fast.lab(grey, 0).double(), formula(grey / 255, 0), rtol=0, atol=5e-4)


def test_layouts_and_types():
    photo = torch.randint(256, (3, 9, 12), dtype=torch.uint8)
    expected = formula(photo / 255, 1.0)
    last = photo.permute(1, 2, 0).contiguous()
    for given in (photo, photo.numpy(), last, last.numpy(), photo / 255, (photo / 255).mT.contiguous().mT):
        torch.testing.assert_close(fast.lab(given).double(), expected, rtol=0, atol=5e-4)


def test_factors():
    photo = torch.rand(3, 4, 5)
    one, three = fast.lab(photo, scale=1.0), fast.lab(photo, scale=(1.0, 2.0, 0.5))
    torch.testing.assert_close(three, one * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1))


def test_errors():
    with pytest.raises(TypeError, match="float64"):
        fast.lab(torch.rand(3, 2, 2).double())
    with pytest.raises(ValueError, match=r"\(4, 2, 2\)"):
        fast.lab(torch.rand(4, 2, 2))
    with pytest.raises(ValueError, match="pixel"):
        fast.lab(torch.rand(3, 0, 2))
    with pytest.raises(ValueError, match="-1"):
        fast.lab(torch.rand(3, 2, 2), -1)
