"""The bag embedding of the CPU against the mean of look-ups."""

import pytest
import torch
import torch.nn.functional as F

from tst_megatron.model.embedding import bag_embedding

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def case(bag_size, dtype, *, rows=11, positions=5):
    generator = torch.Generator().manual_seed(bag_size)
    weight = torch.randn(rows, 6, generator=generator).to(dtype).requires_grad_()
    tokens = torch.randint(0, rows, (2, positions, bag_size), generator=generator)
    tokens[0, 0] = 4
    # Of one sign: where large sums cancel, fp32 itself is no longer exact.
    upstream = torch.rand(positions, 2, 6, generator=generator).to(dtype)
    exact = weight.detach().double().requires_grad_()
    expected = F.embedding(tokens, exact).mean(dim=2).transpose(0, 1)
    (expected * upstream).sum().backward()
    return weight, tokens, upstream, expected.detach(), exact.grad


def assert_rounded_once(value, exact):
    """Half a unit in the last place of the type, and what sums in fp32 add to it."""
    limit = exact.abs() * torch.finfo(value.dtype).eps / 2 + exact.abs().max() * 1e-6
    assert bool(((value.double() - exact).abs() <= limit).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bag_size", range(1, 17))
def test_mean_and_gradient_are_rounded_once(bag_size, dtype):
    weight, tokens, upstream, expected, gradient = case(bag_size, dtype)
    means = bag_embedding(weight, tokens)
    means.backward(upstream)
    assert (means.dtype, means.shape) == (dtype, (5, 2, 6))
    assert_rounded_once(means, expected)
    assert_rounded_once(weight.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_split", [False, True])
def test_gradient_of_a_token_in_a_thousand_bags_is_rounded_once(dtype, is_split):
    weight, tokens, upstream, _, gradient = case(6, dtype, rows=7, positions=1000)
    out_dtype = torch.float32 if is_split else dtype
    bag_embedding(weight, tokens, is_split=is_split, out_dtype=out_dtype).backward(
        upstream.to(out_dtype)
    )
    assert_rounded_once(weight.grad, gradient)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("bag_size", [1, 3, 6, 16])
def test_shares_of_ranks_are_exact_in_fp32_and_so_is_their_sum(bag_size, dtype):
    """Shares rounded to bf16 before they leave would double the error over 4 ranks."""
    weight, tokens, upstream, expected, gradient = case(bag_size, dtype, rows=12)
    parts = [part.detach().requires_grad_() for part in weight.split(3)]
    shares = [
        bag_embedding(part, tokens, first_row=3 * rank, is_split=True, out_dtype=torch.float32)
        for rank, part in enumerate(parts)
    ]
    for rank, share in enumerate(shares):
        is_here = (tokens // 3 == rank).unsqueeze(-1)
        vectors = F.embedding(tokens, weight.detach().double()) * is_here
        torch.testing.assert_close(share.double(), vectors.mean(dim=2).transpose(0, 1))
    assert {share.dtype for share in shares} == {torch.float32}
    torch.testing.assert_close(sum(shares).double(), expected, rtol=1e-6, atol=1e-6)
    sum(shares).backward(upstream.float())
    assert_rounded_once(torch.cat([part.grad for part in parts]), gradient)


def test_bits_in_fp32_are_those_of_torchs_own_function():
    weight, tokens, upstream, _, _ = case(6, torch.float32)
    bag_embedding(weight, tokens).backward(upstream)
    twin = weight.detach().clone().requires_grad_()
    bags = tokens.transpose(0, 1).reshape(-1, 6)
    means = F.embedding_bag(bags, twin, mode="mean").view(5, 2, 6)
    means.backward(upstream)
    assert torch.equal(bag_embedding(weight, tokens), means)
    assert torch.equal(weight.grad, twin.grad)


@pytest.mark.parametrize("bag_size", [3, 4, 16])
@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_shares_of_a_split_table_are_not_rounded_to_its_type(num_ranks, bag_size):
    """Whether they cross the ranks in fp32 is no use if they were rounded before."""
    generator = torch.Generator().manual_seed(bag_size)
    table = torch.randn(32, 6, generator=generator).bfloat16()
    tokens = torch.randint(0, 32, (2, 50, bag_size), generator=generator)
    exact = F.embedding(tokens, table.double()).mean(dim=2).transpose(0, 1)
    num_rows = 32 // num_ranks
    shares = [
        bag_embedding(
            rows, tokens, first_row=rank * num_rows, is_split=True, out_dtype=torch.float32
        )
        for rank, rows in enumerate(table.split(num_rows))
    ]
    # Eight bits, as bf16 has them, are wrong by 4e-3.
    torch.testing.assert_close(sum(shares).double(), exact, rtol=0, atol=1e-6)


def test_kernels_are_refused_for_what_they_cannot_compute():
    weight, tokens = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(1, 1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="triton computes in fp32, not torch.float64. Use torch"):
        bag_embedding(weight, tokens, implementation="triton")
    with pytest.raises(ValueError, match="implementation: cuda is none of auto, torch, triton"):
        bag_embedding(weight, tokens, implementation="cuda")
