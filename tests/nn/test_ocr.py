"""Object-contextual representations against their equations, published layers, precision and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hggraph.nn import OCR
from hggraph.nn.ocr import spatial_gather
from tests.models.norms import randomise_norms

close = {"rtol": 1e-9, "atol": 1e-9}


def made():
    module = randomise_norms(OCR(6, 3, 8, 4)).double().eval()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.5)
    return module


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def layer(x, conv, norm):
    """Return convolution, normalisation and ReLU of a map."""
    y = F.conv2d(x, conv.weight, conv.bias, padding=conv.padding)
    y = (y - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
    return (y * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).relu()


def of_vector(v, *layers):
    y = v.view(1, -1, 1, 1)
    for each in layers:
        y = layer(y, each[0], each[1])
    return y.flatten()


def test_equations():
    """One pixel and one class at a time."""
    module, x = made(), double(2, 6, 3, 4)
    attention = module.attention
    with torch.no_grad():
        features, coarse = module(x)
        hidden = layer(x, module.coarse[0], module.coarse[1])
        last = module.coarse[3]
        want_coarse = torch.einsum("kc,bchw->bkhw", last.weight[:, :, 0, 0], hidden) + last.bias.view(-1, 1, 1)
        torch.testing.assert_close(coarse, want_coarse, **close)
        pixels = layer(x, module.pixels[0], module.pixels[1])
        assert pixels.shape == (2, 8, 3, 4)
        places = [(i, j) for i in range(3) for j in range(4)]
        for b in range(2):
            vectors = []
            for k in range(3):
                weights = [want_coarse[b, k, i, j].exp() for i, j in places]
                total = sum(w * pixels[b, :, i, j] for w, (i, j) in zip(weights, places, strict=True))
                vectors.append(total / sum(weights))
            keys = [of_vector(v, *attention.key) for v in vectors]
            values = [of_vector(v, attention.value) for v in vectors]
            for i, j in places:
                query = of_vector(pixels[b, :, i, j], *attention.query)
                weights = [(query.dot(key) / 4**0.5).exp() for key in keys]
                attended = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
                context = of_vector(attended, attention.context)
                want = of_vector(torch.cat([context, pixels[b, :, i, j]]), module.project)
                torch.testing.assert_close(features[b, :, i, j], want, **close)


def test_published_layers():
    """HRNet-OCR: 720 channels of W48, 19 classes; a bias in the coarse head and the 3x3 alone."""
    with torch.device("meta"):
        module = OCR(720, 19)
    coarse = 720 * 720 + 720 + 2 * 720 + 720 * 19 + 19
    pixels = 9 * 720 * 512 + 512 + 2 * 512
    narrow, square = 512 * 256 + 2 * 256, 256 * 256 + 2 * 256
    attention = 2 * (narrow + square) + narrow + (256 * 512 + 2 * 512)
    project = 1024 * 512 + 2 * 512
    assert sum(p.numel() for p in module.parameters()) == coarse + pixels + attention + project
    assert module.dropout.p == 0.05


def test_layouts_and_batches():
    module, x = made(), double(3, 6, 5, 7)
    around = torch.full((3, 8, 7, 9), torch.nan, dtype=torch.float64)
    around[:, 1:7, 1:6, 1:8] = x
    with torch.no_grad():
        one_by_one = [torch.cat(parts) for parts in zip(*(module(image[None]) for image in x), strict=True)]
        for same in (x, x.to(memory_format=torch.channels_last), around[:, 1:7, 1:6, 1:8]):
            torch.testing.assert_close(list(module(same)), one_by_one, **close)
        assert [y.shape for y in module(x[:0])] == [(0, 8, 5, 7), (0, 3, 5, 7)]


@pytest.mark.parametrize("training", [False, True])
def test_gradients(training):
    module = made().train(training)
    module.dropout.p = 0.0
    x = double(2, 6, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: [y.tanh() for y in module(x)], (x,), eps=1e-7, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_autocast_trains(dtype, scale):
    module = OCR(6, 3, 8, 4)
    with torch.autocast("cpu", dtype):
        features, coarse = module(scale * torch.randn(2, 6, 12, 12))
    assert features.dtype == coarse.dtype == dtype
    (features.float().square().mean() + coarse.float().square().mean()).backward()
    assert features.isfinite().all() and coarse.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_mean_of_a_large_image_in_half_precision():
    """Each weight is 1 / 90900, which in half precision is 0.2 % too large."""
    pixels, logits = torch.ones(1, 2, 300, 303, dtype=torch.float16), torch.zeros(1, 1, 300, 303, dtype=torch.float16)
    with torch.autocast("cpu", torch.float16):
        found = spatial_gather(pixels, logits)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=5e-4)  # half a unit in the last place


def test_certain_logits_choose_a_pixel():
    pixels, logits = double(1, 5, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    logits[0, 0, 1, 2] = logits[0, 1, 3, 0] = 1e4
    want = torch.stack([pixels[0, :, 1, 2], pixels[0, :, 3, 0]], 1)
    torch.testing.assert_close(spatial_gather(pixels, logits)[0], want, **close)


def test_one_vector_in_training():
    module = OCR(4, 1, 8, 4)
    with pytest.raises(ValueError, match=r"one value per channel after global pooling.*SyncBatchNorm"):
        module(torch.rand(1, 4, 6, 6))
    assert module(torch.rand(2, 4, 6, 6))[0].isfinite().all()
    assert module.eval()(torch.rand(1, 4, 6, 6))[0].isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OCR(0, 3), "`in_channels` must be a whole number >= 1, got 0"),
        (lambda: OCR(8, 0), "`num_classes` must be a whole number >= 1, got 0"),
        (lambda: OCR(8, 3, 0), "`channels` must be a whole number >= 1, got 0"),
        (lambda: OCR(8, 3, 8, 0), "`key_channels` must be a whole number >= 1, got 0"),
        (lambda: OCR(8, 3, 8, 4)(torch.rand(8, 4, 4)), r"`x` must have shape \(B, C, H, W\)"),
        (lambda: OCR(8, 3, 8, 4)(torch.rand(2, 6, 4, 4)), r"`x` must have 8 channels, got shape \(2, 6, 4, 4\)"),
        (lambda: OCR(8, 3, 8, 4)(torch.rand(2, 8, 0, 4)), "at least one channel and one pixel"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
