"""The semantic head and its contexts against Eq. 3 to 11 written out, one convolution after the other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hggraph.nn import AsymmetricNonLocal, ContextAggregation, ContextUpdate, SemanticHead
from hggraph.nn.context_module import pyramid_pool
from hggraph.nn.semantic_head import CONTEXTS
from tests.models.norms import randomise_norms

close = {"rtol": 1e-9, "atol": 1e-9}


def spread(module):
    """Return a module with weights and norms that do something, in float64."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
    return randomise_norms(module).double()


def made(context="coarse_to_fine", levels=3, bins=(1, 2)):
    return spread(SemanticHead(7, 4, levels, channels=6, key_channels=5, context=context, bins=bins)).eval()


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def block(x, conv, norm):
    """Return convolution, normalisation and ReLU of a map."""
    return F.batch_norm(
        F.conv2d(x, conv.weight, conv.bias), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    ).relu()


def grids(x, bins):
    """Return the means over cells of grids, by loops; cells end where the next begins or later."""
    height, width = x.shape[2:]
    tokens = []
    for size in bins:
        for i in range(size):
            for j in range(size):
                rows = slice(i * height // size, -(-(i + 1) * height // size))
                columns = slice(j * width // size, -(-(j + 1) * width // size))
                tokens.append(x[:, :, rows, columns].mean((2, 3)))
    return torch.stack(tokens, 2)[..., None]


def aggregate(part, x, context):
    """Equations 8 and 9, attention as Vaswani et al. have it."""
    query, key, value = (y.flatten(2) for y in (part.query(x), part.key(context), part.value(context)))
    weights = (torch.einsum("bdp,bdt->bpt", query, key) / query.shape[1] ** 0.5).softmax(2)
    attended = torch.einsum("bpt,bct->bcp", weights, value).unflatten(2, x.shape[2:])
    return block(torch.cat([attended, x], 1), *part.aggregate[:2])


def classify(part, x):
    return part[3](block(x, part[0], part[1]))


def literal(head, features):
    """The head as the paper has it: project, pool, refine from coarse to fine, classify."""
    finest = head.project(features)
    if head.context == "anl":
        finest = head.non_locals[0](finest)
    levels = [F.avg_pool2d(finest, 2**k) if k else finest for k in reversed(range(head.levels))]
    if head.context == "multi_anl":
        levels = [anl(x) for anl, x in zip(head.non_locals, levels, strict=True)]
    if head.context == "coarse_to_fine":
        context = grids(finest, head.bins)
        for i, part in enumerate(head.aggregations):
            levels[i] = aggregate(part, levels[i], context)
            if i + 1 < head.levels:
                both = torch.cat([grids(levels[i], head.bins), context], 1)
                context = block(both, *head.updates[i].update[:2])
    return [classify(part, x) for part, x in zip(head.classify, levels, strict=True)]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("levels", [1, 3])
def test_as_written_in_the_paper(context, levels):
    head, x = made(context, levels), double(2, 7, 8, 12)
    with torch.no_grad():
        found = head(x)
        assert [tuple(y.shape) for y in found] == [(2, 4, 8 >> k, 12 >> k) for k in reversed(range(levels))]
        torch.testing.assert_close(found, literal(head, x), **close)


@pytest.mark.parametrize("context", CONTEXTS)
def test_composed(context):
    head, x = made(context), double(2, 7, 8, 12)
    with torch.no_grad():
        want = head(x)
        head.compose()
        head.compose()  # once is enough
        torch.testing.assert_close(head(x), want, **close)
    assert not head.aggregations or not any(hasattr(part, "query") for part in head.aggregations)


def test_context_modules():
    """One by one, with more pixels than tokens and the reverse."""
    aggregation, update = spread(ContextAggregation(6, 4)).eval(), spread(ContextUpdate(6, (1, 3))).eval()
    before = nn.Conv2d(9, 6, 1, bias=False).double()
    with torch.no_grad():
        for size in ((5, 7), (1, 2)):
            x, wide, context = double(2, 6, *size), double(2, 9, *size), double(2, 6, 10, 1)
            torch.testing.assert_close(aggregation(x, context), aggregate(aggregation, x, context), **close)
            want = aggregate(aggregation, before(wide), context)
            torch.testing.assert_close(aggregation(wide, context, before), want, **close)
            torch.testing.assert_close(aggregation.composed(before)(wide, context), want, **close)
            torch.testing.assert_close(pyramid_pool(x, (1, 3)), grids(x, (1, 3)), **close)
            want = block(torch.cat([grids(x, (1, 3)), context], 1), *update.update[:2])
            torch.testing.assert_close(update(x, context), want, **close)


def test_asymmetric_non_local():
    module, x = spread(AsymmetricNonLocal(6, 4, key_channels=3, bins=(1, 3))).eval(), double(2, 6, 5, 4)
    with torch.no_grad():
        query = block(x, *module.key[:2])
        key, value = grids(query, (1, 3)).flatten(2), grids(module.value(x), (1, 3)).flatten(2)
        weights = (query.flatten(2).mT @ key / 3**0.5).softmax(2)
        context = module.context((value @ weights.mT).unflatten(2, (5, 4)))
        torch.testing.assert_close(module(x), block(torch.cat([context, x], 1), *module.project[:2]), **close)
        assert module(x[:0]).shape == (0, 4, 5, 4)
    fresh = AsymmetricNonLocal(6)
    assert not fresh.context.weight.any() and fresh.dropout.p == 0.05 and fresh.bins == (1, 3, 6, 8)


def test_published_widths():
    with torch.device("meta"):
        head = SemanticHead(720, 150)
        assert pyramid_pool(torch.empty(1, 720, 128, 128)).shape == (1, 720, 110, 1)
    project, keys, value = 720 * 512, 2 * 512 * 256, 512 * 512
    mix = 1024 * 512 + 2 * 512
    classifier = 512 * 512 + 2 * 512 + 512 * 150 + 150
    wanted = project + 4 * (keys + value + mix) + 3 * mix + 4 * classifier
    assert sum(p.numel() for p in head.parameters()) == wanted


def test_documented_operations():
    with torch.device("meta"):
        head, x = SemanticHead(720, 150).eval(), torch.empty(1, 720, 128, 128)
    found = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            head(x)
        found.append(f"{counter.get_total_flops() / 2e9:.1f}")
        head.compose()
    written = 720 * 512 * 128**2 / 1e9
    for side in (16, 32, 64, 128):
        per_pixel = 512 * 256 + 110 * (256 + 512) + 1024 * 512 + 512 * 512 + 512 * 150
        written += side**2 * per_pixel / 1e9
    tokens = 110 * (4 * (512 * 256 + 512 * 512) + 3 * 1024 * 512) / 1e9
    assert [*found, f"{written + tokens:.0f}"] == ["19.8", "18.8", "30"]


@pytest.mark.parametrize("context", ["none", "coarse_to_fine"])
def test_gradients(context):
    head = made(context, 2)
    x = double(2, 7, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: [y.tanh() for y in head(x)], (x,), fast_mode=True)


@pytest.mark.parametrize("context", CONTEXTS)
def test_gradients_are_those_of_the_paper(context):
    """What is composed learns like what is written."""
    head, x = made(context), double(2, 7, 8, 12)
    grads = []
    for run in (head, lambda x: literal(head, x)):
        head.zero_grad()
        sum(y.square().mean() for y in run(x)).backward()
        grads.append([p.grad.clone() if p.grad is not None else None for p in head.parameters()])
    assert all(g is not None and g.isfinite().all() for g in grads[0])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, **close)


@pytest.mark.parametrize("context", CONTEXTS)
def test_trains_under_autocast(context):
    head = SemanticHead(7, 4, 3, channels=6, key_channels=5, context=context, bins=(1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        out = head(torch.randn(2, 7, 8, 12))
    assert all(y.dtype == torch.bfloat16 for y in out)
    sum(y.float().square().mean() for y in out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_batches_and_layouts():
    head, x = made(), double(3, 7, 4, 8)
    with torch.no_grad():
        one_by_one = [torch.cat(parts) for parts in zip(*(head(image[None]) for image in x), strict=True)]
        for same in (x, x.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(head(same), one_by_one, **close)
        assert [y.shape for y in head(x[:0])] == [(0, 4, 1, 2), (0, 4, 2, 4), (0, 4, 4, 8)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SemanticHead(0, 3), "`in_channels` must be a whole number >= 1, got 0"),
        (lambda: SemanticHead(8, 0), "`num_classes` must be a whole number >= 1, got 0"),
        (lambda: SemanticHead(8, 3, 0), "`levels` must be a whole number >= 1, got 0"),
        (lambda: SemanticHead(8, 3, channels=0), "`channels` must be a whole number >= 1, got 0"),
        (lambda: SemanticHead(8, 3, key_channels=0), "`key_channels` must be a whole number >= 1, got 0"),
        (lambda: SemanticHead(8, 3, context="ours"), r"`context` must be one of \('none', .* got 'ours'"),
        (lambda: SemanticHead(8, 3, bins=()), r"`bins` must name at least one grid, .* got \(\)"),
        (lambda: SemanticHead(8, 3, bins=(1, 0)), "`bins` must be a whole number >= 1, got 0"),
        (lambda: AsymmetricNonLocal(8, key_channels=0), "`key_channels` must be a whole number >= 1, got 0"),
        (lambda: AsymmetricNonLocal(8)(torch.rand(8, 4, 4)), r"`x` must have shape \(B, C, H, W\)"),
        (lambda: SemanticHead(8, 3)(torch.rand(1, 7, 8, 8)), r"`x` must have 8 channels, got shape \(1, 7, 8, 8\)"),
        (lambda: SemanticHead(8, 3)(torch.rand(1, 8, 12, 8)), "sides divisible by 8, .* Pad the images"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
