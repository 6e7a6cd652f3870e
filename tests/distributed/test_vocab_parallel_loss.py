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
    all_reduce = torch.distributed.all_reduce

    def counted(tensor, *args, **kwargs):
        collectives.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
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
def test_two_collectives_of_a_number_or_two_per_position(ranks, bag_size):
    for rank in ranks:
        _, _, collectives = rank[bag_size, None]
        expected = [] if len(ranks) == 1 else [POSITIONS, 2 * POSITIONS]
        assert collectives == expected
