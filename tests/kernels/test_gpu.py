"""The kernels on a GPU: as exact as PyTorch, the same bits each time, no waiting, any size, any device."""

import logging

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from hggraph import HGStage, SoftSLIC, ops, use_backend
from hggraph.nn import HGBottleneck
from tests.kernels.cases import CASES, SQUARE, Case, expected, rand, run, some, weights, worst

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def last(*shape):  # an image's rows of pixels, as channels_last lays them out
    return rand(*shape).mT.contiguous().mT


# The sizes of a network, at which tiles are full; fewer images and channels than there. No threshold and no cancelling:
# of a million entries some lie on the edge, where rounding decides.
LARGE = [
    Case("soft_assign", "large", lambda: (last(2, 256, 8100) / 16, rand(2, 127, 256) / 16, None, 0.0)),
    Case("soft_assign", "large, index", lambda: (rand(2, 5, 8100), rand(2, 127, 5), some(2, 9, 127, 8100), 0.0)),
    Case("centre_update", "large", lambda: (last(2, 256, 8100) / 16, rand(2, 127, 256) / 16, None)),
    Case("region_adjacency", "large", lambda: (weights(2, 127, 8100), [90, 90], SQUARE, False, False)),
    Case("region_pool", "large", lambda: (last(2, 256, 8100), weights(2, 127, 8100), None, 127)),
    Case("region_pool", "large, index", lambda: (last(2, 256, 8100), weights(2, 9, 8100), some(2, 9, 127, 8100), 127)),
    Case("region_unpool", "large", lambda: (rand(2, 127, 256), weights(2, 127, 8100), None)),
    Case("region_unpool", "large, index", lambda: (rand(2, 127, 256), weights(2, 9, 8100), some(2, 9, 127, 8100))),
    Case(
        "unpool_conv1x1",
        "large",
        lambda: (last(2, 256, 8100), rand(2, 127, 64), weights(2, 127, 8100), rand(512, 320) / 18, rand(512), None),
    ),
    Case(
        "typed_aggregate_dense", "large", lambda: (rand(2, 127, 256), rand(9, 256, 128), rand(2, 9, 127, 127) / 127, 1)
    ),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_parity(case, dtype):
    """Against float64 on the same rounded numbers: at most twice the error of PyTorch in that precision."""
    wanted = expected(case, "cuda", dtype)
    eager = worst(run(case, "torch", dtype, "cuda", dtype), wanted)
    ours = worst(run(case, "triton", dtype, "cuda", dtype), wanted)
    # where PyTorch happens to be exact, one rounding of the result and of what is summed is allowed
    assert ours <= max(2 * eager, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_repeats_bit_by_bit(case):
    first = run(case, "triton", torch.bfloat16, "cuda")
    for _ in range(99):
        again = run(case, "triton", torch.bfloat16, "cuda")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def stage(channels: int = 64, regions: int = 16) -> nn.Module:
    """A whole stage with the 1x1 convolution over its input and its result."""
    blocks = [HGBottleneck(channels, 32), HGBottleneck(128, 32)]
    fuse = nn.Conv2d(channels + 128, 96, 1, bias=False)
    return HGStage(blocks, SoftSLIC(num_regions=regions), fuse=fuse).cuda().eval()


def backward(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    out = module(x)
    return [out, *torch.autograd.grad(out.square().mean(), [x, *module.parameters()])]


@pytest.fixture
def no_waiting():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_synchronisation(case, no_waiting):
    run(case, "triton", device="cuda")  # compiles, and fills tables
    arguments = case.arguments(device="cuda")
    leaves = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    no_waiting()
    with use_backend("triton"):
        out = getattr(torch.ops.hggraph, case.op)(*arguments)
        out = out[0] if isinstance(out, tuple) else out
        torch.autograd.grad(out, leaves, torch.ones_like(out))


def test_stage_does_not_synchronise(no_waiting):
    module, x = stage(), torch.randn(2, 64, 24, 20, device="cuda", requires_grad=True)
    backward(module, x)
    no_waiting()
    backward(module, x)


@pytest.mark.parametrize("train", [False, True])
def test_stage_as_a_cuda_graph(train):
    """Replayed on another image it gives that image's result, and gradients."""
    module = stage()
    x = torch.randn(1, 64, 24, 20, device="cuda", requires_grad=train)
    step = backward if train else lambda module, x: [module(x)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.set_grad_enabled(train):
        with torch.cuda.stream(stream):
            for _ in range(3):
                step(module, x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step(module, x)
        for _ in range(2):
            other = torch.randn_like(x)
            with torch.no_grad():
                x.copy_(other)
            graph.replay()
            wanted = step(module, other.requires_grad_(train))
            for actual, want in zip(results, wanted, strict=True):
                torch.testing.assert_close(actual, want)


def test_compiles_once_for_five_sizes():
    module = stage()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for size in [(24, 20), (32, 32), (40, 24), (28, 36), (48, 44)]:
        x = torch.randn(2, 64, *size, device="cuda")
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2  # the second size makes the sizes symbols
    torch._dynamo.reset()


def memory(gigabytes: float) -> None:
    if torch.cuda.mem_get_info()[0] < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of free GPU memory")


def test_more_than_2_to_the_31_elements_on_pixels():
    """One map of 2^31 + 2^16 elements: the last pixels are as good as the first."""
    memory(30)
    channels, pixels = 1024, (1 << 21) + 64
    x = torch.zeros(1, channels, pixels, device="cuda", dtype=torch.bfloat16)
    x[..., -64:] = torch.randn(channels, 64, device="cuda") / 32
    centers = torch.randn(1, 4, channels, device="cuda") / 32
    with use_backend("triton"):
        weight = ops.soft_assign(x, centers)
        pooled = ops.region_pool(x, weight)
    wanted = ops.soft_assign(x[..., -64:].double(), centers.double())
    torch.testing.assert_close(weight[..., -64:].double(), wanted, rtol=1e-3, atol=1e-4)
    total = weight.double().sum(2, keepdim=True)
    mean = weight[..., -64:].double() @ x[0, :, -64:].double().t() / total
    torch.testing.assert_close(pooled.double(), mean, rtol=2e-2, atol=1e-9)


def test_more_than_2_to_the_31_elements_in_rows():
    memory(20)
    rows, channels = (1 << 22) + 8, 512
    x = torch.zeros(rows, channels, device="cuda", dtype=torch.bfloat16)
    x[-8:] = torch.randn(8, channels, device="cuda")
    ptr = torch.tensor([0, rows - 8, rows - 3, rows], device="cuda")
    with use_backend("triton"):
        out = ops.segment_reduce(x, ptr)
    wanted = torch.stack([x[-8:-8].sum(0), x[-8:-3].float().sum(0), x[-3:].float().sum(0)])
    torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=1e-2)


def test_more_than_2_to_the_31_elements_in_attention():
    memory(30)
    size, channels = (2049, 4096), 256
    q = torch.zeros(1, channels, *size, device="cuda", dtype=torch.bfloat16)
    q[..., -4:, -4:] = torch.randn(channels, 4, 4, device="cuda")
    with use_backend("triton"):
        out = ops.local_attention(q, q, q, [(0, 0), (-1, 0), (0, -1)], border="mask")
    part = q[..., -6:, -6:].double()
    wanted = ops.local_attention(part, part, part, [(0, 0), (-1, 0), (0, -1)], border="mask")
    torch.testing.assert_close(out[..., -4:, -4:].double(), wanted[..., -4:, -4:], rtol=2e-2, atol=2e-2)


def test_device_that_is_not_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for case in CASES:
        with torch.cuda.device(0):
            assert worst(run(case, "triton", device="cuda:1"), expected(case)) < case.tolerance


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_autocast(dtype):
    """A step in half precision gives finite gradients, also for features far apart."""
    module, x = stage(), 30 * torch.randn(2, 64, 24, 20, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype):
        results = backward(module, x)
    assert all(result.isfinite().all() for result in results)


def test_the_log_says_what_ran(caplog):
    caplog.set_level(logging.DEBUG, "hggraph")
    x, assignment = torch.rand(1, 3, 6, device="cuda"), torch.rand(1, 2, 6, device="cuda")
    ops.region_pool(x, assignment)
    ops.region_pool(x.double(), assignment.double())
    assert caplog.messages == ["region_pool: triton", "region_pool: torch"]
