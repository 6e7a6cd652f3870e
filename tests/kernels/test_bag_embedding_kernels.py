"""The kernels of the bag embedding against loops in double precision."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tst_megatron.model.embedding import bag_embedding

BAG_SIZES = (1, 2, 3, 4, 6, 8, 16)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in a row of a few columns, and segments of a few positions."""
    from tst_megatron.model.kernels import bag_embedding as kernels

    monkeypatch.setattr(kernels, "MAX_BLOCK", 8)
    monkeypatch.setattr(kernels, "SEGMENT", 4)


def make_case(bag_size, *, rows=13, hidden=21, shape=(2, 3), dtype=torch.float32):
    generator = torch.Generator().manual_seed(bag_size)
    table = torch.randn(rows, hidden, generator=generator).to(dtype)
    tokens = torch.randint(0, rows, (*shape, bag_size), generator=generator)
    if tokens.numel():
        tokens[0, 0] = 7  # one token fills a bag
        tokens.view(-1)[::2] = 7  # and half of all positions
    upstream = torch.randn(shape[1], shape[0], hidden, generator=generator).to(dtype)
    return table, tokens, upstream


def by_hand(table, tokens, upstream, *, first_row=0):
    """Means [L, B, H] and the table's gradient, position by position."""
    table, upstream = table.double(), upstream.double()
    batch, length, bag_size = tokens.shape
    means = torch.zeros(length, batch, table.shape[1], dtype=torch.float64)
    gradient = torch.zeros_like(table)
    for b in range(batch):
        for n in range(length):
            for token in tokens[b, n].tolist():
                row = token - first_row
                if 0 <= row < len(table):
                    means[n, b] += table[row] / bag_size
                    gradient[row] += upstream[n, b] / bag_size
    return means, gradient


def run(table, tokens, upstream, device, **options):
    weight = table.to(device, copy=True).requires_grad_()
    means = bag_embedding(weight, tokens.to(device), implementation="triton", **options)
    means.backward(upstream.to(device, means.dtype))
    return means.detach().cpu(), weight.grad.cpu()


@pytest.mark.parametrize("bag_size", BAG_SIZES)
def test_fp32_mean_and_gradient_equal_the_definition(device, bag_size):
    case = make_case(bag_size)
    expected, expected_grad = by_hand(*case)
    means, gradient = run(*case, device)
    torch.testing.assert_close(means.double(), expected, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(gradient.double(), expected_grad, rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("bag_size", [3, 6, 16])
def test_bf16_is_rounded_once(device, bag_size):
    case = make_case(bag_size, dtype=torch.bfloat16)
    for actual, exact in zip(run(*case, device), by_hand(*case), strict=True):
        rounded = exact.bfloat16().double()
        spacing = rounded.abs().clamp_min(1e-30).log2().floor().exp2() * 2.0**-7
        assert actual.dtype == torch.bfloat16
        assert ((actual.double() - rounded).abs() <= spacing).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (4, 5), (0, 3)])
def test_shapes(device, shape):
    case = make_case(3, shape=shape, rows=5, hidden=8)
    means, gradient = run(*case, device)
    expected, expected_grad = by_hand(*case)
    torch.testing.assert_close(means.double(), expected, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(gradient.double(), expected_grad, rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_shares_of_ranks_add_up(device, num_ranks):
    table, tokens, upstream = make_case(4, rows=12)
    tokens = tokens.clamp_max(8)  # with 4 ranks, the last has no token at all
    expected, expected_grad = by_hand(table, tokens, upstream)
    total = torch.zeros_like(expected)
    gradients = []
    for rank, part in enumerate(table.chunk(num_ranks)):
        first = rank * len(part)
        means, gradient = run(
            *(part, tokens, upstream, device),
            first_row=first,
            is_split=True,
            out_dtype=torch.float32,
        )
        total += means
        gradients.append(gradient.double())
        share, _ = by_hand(part, tokens, upstream, first_row=first)
        torch.testing.assert_close(means.double(), share, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(total, expected, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(torch.cat(gradients), expected_grad, rtol=2e-6, atol=5e-7)


def test_shares_of_a_bf16_table_can_stay_fp32(device):
    table, tokens, upstream = make_case(4, dtype=torch.bfloat16)
    means, gradient = run(table, tokens, upstream, device, out_dtype=torch.float32)
    expected, _ = by_hand(table, tokens, upstream)
    assert (means.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(means.double(), expected, rtol=2e-6, atol=2e-7)


def test_repeats_are_the_same_bits(device):
    case = make_case(6, shape=(3, 9))
    first = run(*case, device)
    for _ in range(3 if device.type == "cpu" else 20):
        assert all(torch.equal(a, b) for a, b in zip(first, run(*case, device), strict=True))


def test_hot_token_is_summed_in_segments(device, monkeypatch):
    """More than half of the positions are of one token, and its neighbours begin in a segment."""
    from tst_megatron.model.kernels import bag_embedding as kernels

    case = make_case(4, shape=(4, 6))
    expected, expected_grad = by_hand(*case)
    for segment in (2, 4, 64):
        monkeypatch.setattr(kernels, "SEGMENT", segment)
        _, gradient = run(*case, device)
        torch.testing.assert_close(gradient.double(), expected_grad, rtol=2e-6, atol=1e-6)


def test_tokens_that_are_a_view(device):
    table, tokens, upstream = make_case(4, shape=(3, 5))
    view = tokens.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not view.is_contiguous()
    expected = run(table, tokens, upstream, device)
    for actual, wanted in zip(run(table, view, upstream, device), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_gradient_that_is_a_view(device):
    table, tokens, upstream = make_case(2, shape=(3, 5))
    view = upstream.transpose(0, 1).contiguous().transpose(0, 1)
    assert not view.is_contiguous()
    expected = run(table, tokens, upstream, device)[1]
    assert torch.equal(run(table, tokens, view, device)[1], expected)


def test_no_row_of_a_look_up_is_stored(device):
    """Neither direction allocates anything as large as one vector for each token."""
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.is_floating_point():
                sizes.append(out.numel())
            return out

    case = make_case(16, rows=5, hidden=64, shape=(4, 8))
    with Sizes():
        run(*case, device)
    assert sizes and max(sizes) < 4 * 8 * 16 * 64 / 2


@pytest.mark.parametrize("token_dtype", [torch.int32, torch.int64])
def test_rows_beyond_32_bits(device, monkeypatch, token_dtype):
    """The last rows of a table of more than 2^31 numbers; only they are ever touched."""
    from tst_megatron.model.kernels import bag_embedding as kernels

    hidden, rows = 2**20, 2**11 + 2
    table = torch.empty(rows, hidden, dtype=torch.bfloat16, device=device)
    # Even numbers, whose mean bf16 has exactly: Triton's interpreter rounds towards zero.
    last = 2 * torch.arange(2 * hidden).view(2, hidden).remainder(101).bfloat16()
    table[-2:] = last.to(device)
    # The interpreter takes its time for each program; a GPU has no registers for so large a block.
    monkeypatch.setattr(kernels, "MAX_BLOCK", 2**20 if device.type == "cpu" else 2**10)
    tokens = torch.tensor([[[rows - 1, rows - 2]]], dtype=token_dtype, device=device)
    means = bag_embedding(table, tokens, implementation="triton")
    assert torch.equal(means[0, 0].cpu(), (last[0] + last[1]) / 2)


@pytest.fixture
def first_columns(monkeypatch):
    """Of each row only eight columns are computed, so that most of its memory is never touched."""
    from tst_megatron.model.kernels import bag_embedding as kernels

    monkeypatch.setattr(kernels, "_blocks", lambda num_hidden: (8, 1))
    return slice(0, 8)


def test_means_beyond_32_bits(device, first_columns):
    """More than 2^31 numbers in the result; each bag has its place."""
    hidden, shape = 2**24, (2, 2**6 + 2)
    table = torch.empty(3, hidden, dtype=torch.bfloat16)
    table[:, first_columns] = 2 * torch.arange(24).view(3, 8).bfloat16()
    tokens = torch.arange(2 * shape[0] * shape[1]).remainder(3).view(*shape, 2)
    means = bag_embedding(table.to(device), tokens.to(device), implementation="triton")
    small = table[:, first_columns]
    expected, _ = by_hand(small, tokens, torch.zeros(shape[1], shape[0], 8))
    assert means.numel() > 2**31
    assert torch.equal(means[..., first_columns].cpu().double(), expected)


@pytest.mark.parametrize("token_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("adds", [False, True])
def test_gradient_of_rows_beyond_32_bits(device, first_columns, adds, token_dtype):
    """The last rows of a gradient of more than 2^31 numbers; only they have a part in the bag."""
    from tst_megatron.model.kernels import bag_embedding as kernels

    hidden, rows = 2**24, 2**7 + 2
    gradient = torch.empty(rows, hidden, dtype=torch.bfloat16, device=device)
    gradient[-2:, first_columns] = 1
    upstream = torch.empty(1, 1, hidden, device=device)
    upstream[..., first_columns] = 4.0 * torch.arange(8, device=device)
    tokens = rows - torch.tensor([[[1, 2, 1, 1]]], dtype=token_dtype, device=device)
    kernels.write_gradient(gradient, upstream, tokens, 0, adds)
    expected = torch.tensor([[1], [3]]) * torch.arange(8) + adds
    assert torch.equal(gradient[-2:, first_columns].cpu(), expected.bfloat16())


@pytest.mark.parametrize("token_dtype", [torch.int32, torch.int64])
def test_upstream_beyond_32_bits(device, first_columns, token_dtype):
    """Only bags beyond 2^31 numbers of their gradient read rows of this rank."""
    from tst_megatron.model.kernels import bag_embedding as kernels

    hidden, shape = 2**24, (2, 2**6 + 2)
    upstream = torch.empty(shape[1], shape[0], hidden, dtype=torch.bfloat16, device=device)
    last = torch.arange(32).view(2, 2, 8).bfloat16()
    upstream[-2:, :, first_columns] = last.to(device)
    tokens = torch.full((*shape, 2), 2, dtype=token_dtype)
    # Of eight sorted positions four are a segment of row 1, and the others are added one by one.
    tokens[:, -2:] = torch.tensor([[[0, 1], [0, 1]], [[1, 0], [1, 1]]], dtype=token_dtype)
    gradient = torch.empty(2, hidden, device=device)
    kernels.write_gradient(gradient, upstream, tokens.to(device), 0, False)
    _, expected = by_hand(torch.zeros(2, 8), tokens[:, -2:], last)
    assert torch.equal(gradient[:, first_columns].cpu().double(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_tied", [False, True])
def test_gradient_is_added_to_main_grad_micro_batch_by_micro_batch(device, dtype, is_tied):
    table, tokens, upstream = make_case(4, dtype=dtype)
    weight = table.to(device).requires_grad_()
    weight.main_grad = torch.full(table.shape, 0.5, device=device)
    weight.main_grad[3] = torch.inf  # a row that nothing reads is not touched
    weight.grad_added_to_main_grad, weight.zero_out_wgrad = False, is_tied
    tokens = tokens.where(tokens != 3, 4)
    for _ in range(2):
        weight.grad = None
        means = bag_embedding(
            weight, tokens.to(device), implementation="triton", accumulate_into_main_grad=True
        )
        means.backward(upstream.to(device))
        assert weight.grad_added_to_main_grad
    _, gradient = by_hand(table, tokens, upstream)
    expected = 0.5 + 2 * gradient
    expected[3] = torch.inf
    torch.testing.assert_close(weight.main_grad.cpu().double(), expected, rtol=2e-6, atol=1e-6)
    # The hook of a table with two uses adds what it is given, which must then be zero.
    assert weight.grad.shape == table.shape and (not is_tied or not weight.grad.any())


def test_compiled_whole_gives_the_same_bits(device):
    table, tokens, upstream = (value.to(device) for value in make_case(4))

    def total_of_double(weight):
        means = bag_embedding(weight * 2, tokens, implementation="triton")
        return (means * upstream).sum()

    compiled = torch.compile(total_of_double, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (total_of_double, compiled):
        weight = table.clone().requires_grad_()
        function(weight).backward()
        gradients.append(weight.grad)
    assert torch.equal(*gradients)
