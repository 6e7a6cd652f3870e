"""The vocab-parallel loss over real gloo ranks, against the definition in double precision."""

import pytest
import torch
from processes import run_ranks
from reference import multi_hot_loss_and_grad

from tst_megatron.model.loss import vocab_parallel_multi_hot_cross_entropy

BAG_SIZES = (1, 2, 3, 6, 16)
VOCABULARY, POSITIONS = 24, 9


def make_case(bag_size):
    generator = torch.Generator().manual_seed(bag_size)
    logits = torch.randn(POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(0, VOCABULARY, (POSITIONS, bag_size), generator=generator)
    targets[0] = targets[0, 0]
    targets[1, 0] = -100
    targets[2] = -100
    grad = torch.rand(POSITIONS, generator=generator, dtype=torch.float64) + 0.5
    return logits, targets, grad


def losses_of_this_rank():
    group = torch.distributed.group.WORLD
    columns = VOCABULARY // group.size()
    first = group.rank() * columns
    collectives = []
    for name in ("all_reduce", "all_gather_into_tensor"):
        count_elements(name, collectives)
    results = {}
    for bag_size in BAG_SIZES:
        logits, targets, grad = make_case(bag_size)
        part = logits[:, first : first + columns].clone().requires_grad_()
        collectives.clear()
        loss = vocab_parallel_multi_hot_cross_entropy(part, targets, tp_group=group)
        (loss * grad).sum().backward()
        results[bag_size] = (loss.detach(), part.grad, list(collectives))
    return results


def count_elements(name, collectives):
    original = getattr(torch.distributed, name)

    def counted(*args, **kwargs):
        collectives.append((name, args[-1].numel()))
        return original(*args, **kwargs)

    setattr(torch.distributed, name, counted)


def fp32_losses_of_this_rank():
    """fp32, as in training; some ranks have no target of a bag."""
    group = torch.distributed.group.WORLD
    columns = VOCABULARY // group.size()
    first = group.rank() * columns
    logits, targets, grad = make_case(6)
    part = logits[:, first : first + columns].float().requires_grad_()
    loss = vocab_parallel_multi_hot_cross_entropy(part, targets, tp_group=group)
    (loss * grad.float()).sum().backward()
    return loss.detach(), part.grad


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request):
    return run_ranks(losses_of_this_rank, request.param)


@pytest.mark.parametrize("bag_size", BAG_SIZES)
def test_loss_and_gradient_equal_the_definition(ranks, bag_size):
    logits, targets, grad = make_case(bag_size)
    expected, expected_grad = multi_hot_loss_and_grad(logits, targets, upstream_grad_N=grad)
    results = [rank[bag_size] for rank in ranks]
    for loss, _, _ in results:
        torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
        assert torch.equal(loss, results[0][0])
    whole = torch.cat([part_grad for _, part_grad, _ in results], dim=-1)
    torch.testing.assert_close(whole, expected_grad, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("bag_size", BAG_SIZES)
def test_one_collective_of_four_numbers_per_position(ranks, bag_size):
    for rank in ranks:
        _, _, collectives = rank[bag_size]
        expected = [] if len(ranks) == 1 else [("all_gather_into_tensor", 4 * POSITIONS)]
        assert collectives == expected


@pytest.mark.parametrize("size", [2, 4])
def test_fp32_losses_of_ranks_are_the_same_bits_and_those_of_one_rank(size):
    logits, targets, grad = make_case(6)
    whole = logits.float().requires_grad_()
    expected = vocab_parallel_multi_hot_cross_entropy(whole, targets)
    (expected * grad.float()).sum().backward()
    results = run_ranks(fp32_losses_of_this_rank, size)
    for loss, _ in results:
        assert torch.equal(loss, results[0][0])
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    gradient = torch.cat([grad for _, grad in results], dim=-1)
    torch.testing.assert_close(gradient, whole.grad, rtol=2e-6, atol=1e-7)
