"""The bag embedding of the CPU against the mean of look-ups."""

import pytest
import torch
import torch.nn.functional as F

from tst_megatron.model.bag_embedding import bag_embedding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bag_size", [1, 2, 3, 6, 16])
def test_mean_and_gradient_equal_those_of_look_ups(bag_size, dtype):
    generator = torch.Generator().manual_seed(bag_size)
    weight = torch.randn(11, 6, generator=generator).to(dtype).requires_grad_()
    tokens = torch.randint(0, 11, (2, 5, bag_size), generator=generator)
    tokens[0, 0] = 4
    upstream = torch.randn(5, 2, 6, generator=generator).to(dtype)
    exact = weight.detach().double().requires_grad_()
    expected = F.embedding(tokens, exact).mean(dim=2).transpose(0, 1)
    (expected * upstream).sum().backward()
    means = bag_embedding(weight, tokens)
    means.backward(upstream)
    # On a processor torch adds the gradients of a bf16 row in bf16.
    tolerance = 4e-2 if dtype == torch.bfloat16 else 2e-6
    assert (means.dtype, means.shape) == (dtype, (5, 2, 6))
    torch.testing.assert_close(means.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weight.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


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
