"""The vocab-parallel loss over real gloo ranks, against the definition in double precision."""

import pytest
import torch
from processes import run_ranks
from reference import multi_hot_loss_and_grad

from tst_megatron.model.loss import vocab_parallel_multi_hot_cross_entropy

BAG_SIZES = (1, 2, 3, 6, 16)
VOCABULARY, VALID, POSITIONS = 24, 21, 9


def make_case(bag_size):
    generator = torch.Generator().manual_seed(bag_size)
    logits = torch.randn(POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(0, VALID, (POSITIONS, bag_size), generator=generator)
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
        for valid in (None, VALID):
            logits, targets, grad = make_case(bag_size)
            part = logits[:, first : first + columns].clone().requires_grad_()
            collectives.clear()
            loss = vocab_parallel_multi_hot_cross_entropy(
                part, targets, tp_group=group, num_valid_columns=valid
            )
            (loss * grad).sum().backward()
            results[bag_size, valid] = (loss.detach(), part.grad, list(collectives))
    return results


def count_elements(name, collectives):
    original = getattr(torch.distributed, name)

    def counted(*args, **kwargs):
        collectives.append((name, args[-1].numel()))
        return original(*args, **kwargs)

    setattr(torch.distributed, name, counted)


def slot_losses_of_this_rank():
    """fp32, as in training; some ranks have no target of a bag, and a z-loss is on."""
    group = torch.distributed.group.WORLD
    columns = VOCABULARY // group.size()
    first = group.rank() * columns
    logits, targets, grad = make_case(6)
    part = logits[:, first : first + columns].float().requires_grad_()
    loss, slots = vocab_parallel_multi_hot_cross_entropy(
        part, targets, tp_group=group, z_loss=0.1, return_slot_losses=True
    )
    (loss * grad.float()).sum().backward()
    return loss.detach(), slots, part.grad


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request):
    return run_ranks(losses_of_this_rank, request.param)


@pytest.mark.parametrize("valid", [None, VALID])
@pytest.mark.parametrize("bag_size", BAG_SIZES)
def test_loss_and_gradient_equal_the_definition(ranks, bag_size, valid):
    logits, targets, grad = make_case(bag_size)
    expected, expected_grad = multi_hot_loss_and_grad(
        logits, targets, upstream_grad_N=grad, num_valid_columns=valid
    )
    results = [rank[bag_size, valid] for rank in ranks]
    for loss, _, _ in results:
        torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
        assert torch.equal(loss, results[0][0])
    whole = torch.cat([part_grad for _, part_grad, _ in results], dim=-1)
    torch.testing.assert_close(whole, expected_grad, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("bag_size", BAG_SIZES)
def test_one_collective_of_four_numbers_per_position(ranks, bag_size):
    for rank in ranks:
        _, _, collectives = rank[bag_size, None]
        expected = [] if len(ranks) == 1 else [("all_gather_into_tensor", 4 * POSITIONS)]
        assert collectives == expected


@pytest.mark.parametrize("size", [2, 4])
def test_fp32_losses_of_ranks_are_the_same_bits_and_those_of_one_rank(size):
    logits, targets, grad = make_case(6)
    whole = logits.float().requires_grad_()
    expected, expected_slots = vocab_parallel_multi_hot_cross_entropy(
        whole, targets, z_loss=0.1, return_slot_losses=True
    )
    (expected * grad.float()).sum().backward()
    results = run_ranks(slot_losses_of_this_rank, size)
    for loss, slots, _ in results:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(slots, results[0][1])
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
        torch.testing.assert_close(slots, expected_slots, rtol=2e-6, atol=0)
    gradient = torch.cat([grad for _, _, grad in results], dim=-1)
    torch.testing.assert_close(gradient, whole.grad, rtol=2e-6, atol=1e-7)
