"""The linear loss over real gloo ranks, with and without sequence parallelism."""

import pytest
import torch
from processes import run_ranks
from reference import multi_hot_loss_and_grad

from tst_megatron.model import linear_loss
from tst_megatron.model.linear_loss import linear_multi_hot_cross_entropy

VOCABULARY, HIDDEN, POSITIONS, BATCH, BAG_SIZE = 48, 6, 4, 2, 3
CASES = [
    (sequence_parallel, mode)
    for sequence_parallel in (False, True)
    for mode in ("save", "recompute")
]


def make_case():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(POSITIONS, BATCH, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCABULARY, (POSITIONS, BATCH, BAG_SIZE), generator=generator)
    targets[0, 0, 1] = -100
    targets[1, 1] = -100
    upstream = torch.randn(POSITIONS, BATCH, generator=generator, dtype=torch.float64)
    return hidden, weight, targets, upstream


def losses_of_this_rank():
    linear_loss.CHUNK_MULTIPLE = 5
    group = torch.distributed.group.WORLD
    hidden, weight, targets, upstream = make_case()
    results = {}
    for sequence_parallel, mode in CASES:
        part = weight.chunk(group.size())[group.rank()].clone().requires_grad_()
        states = hidden.chunk(group.size())[group.rank()] if sequence_parallel else hidden
        states = states.clone().requires_grad_()
        loss = linear_multi_hot_cross_entropy(
            *(states, part, targets),
            tp_group=group,
            sequence_parallel=sequence_parallel,
            mode=mode,
            workspace_bytes=1,
        )
        (loss * upstream).sum().backward()
        results[sequence_parallel, mode] = (loss.detach(), states.grad, part.grad)
    return results


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request):
    return run_ranks(losses_of_this_rank, request.param)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_definition(ranks, case):
    hidden, weight, targets, upstream = make_case()
    flat = hidden.view(-1, HIDDEN)
    expected, grad_logits = multi_hot_loss_and_grad(
        flat @ weight.t(),
        targets.view(-1, BAG_SIZE),
        upstream_grad_N=upstream.view(-1),
    )
    expected_hidden = (grad_logits @ weight).view_as(hidden)
    sequence_parallel, _ = case
    results = [rank[case] for rank in ranks]
    for loss, grad_hidden, _ in results:
        assert torch.equal(loss, results[0][0])
        torch.testing.assert_close(loss.view(-1), expected, atol=1e-11, rtol=1e-11)
        if not sequence_parallel:
            torch.testing.assert_close(grad_hidden, expected_hidden, atol=1e-11, rtol=1e-11)
    if sequence_parallel:
        whole = torch.cat([grad_hidden for _, grad_hidden, _ in results])
        torch.testing.assert_close(whole, expected_hidden, atol=1e-11, rtol=1e-11)
    grad_weight = torch.cat([part for *_, part in results])
    torch.testing.assert_close(grad_weight, grad_logits.t() @ flat, atol=1e-11, rtol=1e-11)
