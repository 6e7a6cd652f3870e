"""Context parallelism cuts latent positions after folding, and the loss of the parts is the whole.

The attention of context parallelism is Transformer Engine's. What stands here in its place gathers
keys and values, so that everything around it is Megatron's and ours.
"""

import pytest
import torch
from one_layout import LENGTH, SAMPLES, raw_tokens, recipe, step, worst_error
from one_step import build, start
from processes import run_ranks

from tst_megatron.schedule import Phase
from tst_megatron.training.step import loss_func, make_batch, on_this_context_parallel_rank

END = 2


def phase(bag_size):
    return Phase(bag_size=bag_size, first_step=0, num_steps=1)


def chunks_of(rank, num_ranks, length):
    """Positions of a rank, by the definition: of 2C chunks the chunks r and 2C-1-r."""
    size = length // (2 * num_ranks)
    return [
        chunk * size + place for chunk in (rank, 2 * num_ranks - 1 - rank) for place in range(size)
    ]


@pytest.fixture
def as_rank(monkeypatch):
    """Be one rank of a context-parallel group, as Megatron asks for it."""

    def be(rank, num_ranks):
        monkeypatch.setattr("megatron.core.parallel_state.get_context_parallel_group", lambda: None)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda group: num_ranks)
        monkeypatch.setattr("torch.distributed.get_rank", lambda group: rank)

    return be


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("bag_size", [1, 4])
def test_a_rank_has_two_chunks_of_latent_positions_with_their_targets(as_rank, bag_size, num_ranks):
    tokens = torch.arange(3, 3 + 2 * bag_size * (LENGTH + 1)).view(2, -1)
    tokens[1, 5 * bag_size : 7 * bag_size] = END
    batch = make_batch(tokens, phase(bag_size), masked_after=END)
    seen = []
    for rank in range(num_ranks):
        as_rank(rank, num_ranks)
        part = on_this_context_parallel_rank(batch)
        positions = chunks_of(rank, num_ranks, LENGTH)
        seen += positions
        assert part.position_ids.tolist() == [positions, positions]
        for here, there in enumerate(positions):
            for row in range(2):
                bag = tokens[row, there * bag_size :][:bag_size].tolist()
                assert part.tokens[row, here].flatten().tolist() == bag
                assert torch.equal(part.targets[row, here], batch.targets[row, there])
                assert part.loss_mask[row, here] == batch.loss_mask[row, there]
            # Also where that bag is another rank's to read.
            following = tokens[0, (there + 1) * bag_size :][:bag_size].tolist()
            assert part.targets[0, here].flatten().tolist() == following
        assert part.loss_mask.sum() < 2 * len(positions) or 5 not in positions
    assert sorted(seen) == list(range(LENGTH))


def test_one_rank_has_the_batch_as_it_is(as_rank):
    as_rank(0, 1)
    batch = make_batch(raw_tokens(4), phase(4))
    part = on_this_context_parallel_rank(batch)
    assert part.tokens is batch.tokens
    assert part.targets is batch.targets
    assert part.position_ids is batch.position_ids
    assert part.loss_mask is batch.loss_mask


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_sums_and_counts_of_the_ranks_add_up_to_the_whole(as_rank, monkeypatch, num_ranks):
    """What Megatron reduces over DP x CP: the loss of a rank is of its own positions alone."""
    monkeypatch.setattr("tst_megatron.training.step._validate", lambda *_, **__: None)
    tokens = torch.randint(3, 9, (2, 4 * (LENGTH + 1)), generator=torch.Generator().manual_seed(1))
    tokens[0, 8:40] = END
    batch = make_batch(tokens, phase(4), masked_after=END)
    assert 0 < batch.loss_mask[0].sum() < LENGTH
    losses = torch.rand(2, LENGTH, dtype=torch.float64)
    whole, count, report = loss_func(batch.loss_mask, "bag loss", losses)
    parts = []
    for rank in range(num_ranks):
        as_rank(rank, num_ranks)
        part = on_this_context_parallel_rank(batch)
        here = losses[:, chunks_of(rank, num_ranks, LENGTH)]
        parts.append(loss_func(part.loss_mask, "bag loss", here))
    assert len({int(part[1]) for part in parts}) > 1  # an uneven mask
    assert sum(part[1] for part in parts) == count
    assert torch.allclose(sum(part[0] for part in parts), whole)
    assert torch.allclose(sum(part[2]["bag loss"] for part in parts), report["bag loss"])


# --- gradients -----------------------------------------------------------------------------------


class _Gathered(torch.autograd.Function):
    """[N, ...] on each rank -> [C, N, ...] on all; gradients are summed on the owner."""

    @staticmethod
    def forward(ctx, tensor, group):
        ctx.group = group
        parts = [torch.empty_like(tensor) for _ in range(group.size())]
        torch.distributed.all_gather(parts, tensor.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        torch.distributed.all_reduce(grad, group=ctx.group)
        return grad[ctx.group.rank()], None


class GatheredAttention(torch.nn.Module):
    """Causal attention to the keys of all context-parallel ranks, from the definition."""

    def __init__(self, config, *_, **__):
        super().__init__()
        from megatron.core import parallel_state

        self.group = parallel_state.get_context_parallel_group()

    def forward(self, query, key, value, *_, **__):
        length, batch, heads, size = query.shape
        ranks = self.group.size()
        positions = [torch.tensor(chunks_of(rank, ranks, length * ranks)) for rank in range(ranks)]
        key, value = (
            _Gathered.apply(x, self.group).flatten(0, 1).repeat_interleave(heads // x.shape[2], 2)
            for x in (key, value)
        )
        scores = torch.einsum("qbhd,kbhd->bhqk", query, key) / size**0.5
        is_later = torch.cat(positions) > positions[self.group.rank()][:, None]
        weights = scores.masked_fill(is_later, -torch.inf).softmax(-1)
        return torch.einsum("bhqk,kbhd->qbhd", weights, value).reshape(length, batch, -1)


def gradients(tokenizer):
    """Of both bag sizes, with and without the per-token flag: {case: (gradients, reports)}."""
    from megatron.core import parallel_state
    from megatron.core.models.backends import LocalSpecProvider

    LocalSpecProvider.core_attention = lambda self: GatheredAttention
    # Two ranks that are not context-parallel are data-parallel, and here they read the same.
    layouts = {"sliced": (2, SAMPLES), "whole": (1, 2 * SAMPLES)}
    found = {}
    for layout, (context_parallel_size, global_batch_size) in layouts.items():
        args = start(
            recipe(
                tokenizer,
                context_parallel_size=context_parallel_size,
                global_batch_size=global_batch_size,
                # It reads the position ids; and Megatron's cut of RoPE pins memory, as a GPU has.
                position_embedding_type="learned_absolute",
            )
        )
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        for per_token in (False, True):
            args.calculate_per_token_loss = per_token
            models = build(args)
            for bag_size in (1, 4):
                grads, reports = step(args, models, bag_size, raw_tokens(bag_size))
                (name,) = reports[0]
                total = torch.tensor([report[name] for report in reports]).sum(dim=0)
                torch.distributed.all_reduce(total, group=group)
                found[layout, per_token, bag_size] = (grads, total, name)
    return found


@pytest.fixture(scope="module")
def found(text):
    return run_ranks(gradients, 2, text / "tokenizer.model", preload="preloaded")[0]


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("bag_size", [1, 4])
def test_gradients_are_those_of_the_whole_sequence(found, bag_size, per_token):
    grads, sliced, name = found["sliced", per_token, bag_size]
    reference, whole, _ = found["whole", per_token, bag_size]
    assert name == ("bag loss" if bag_size > 1 else "lm loss")
    assert sliced[1] == SAMPLES * LENGTH
    assert whole.tolist() == pytest.approx((2 * sliced).tolist(), rel=1e-6)
    assert worst_error(grads, reference) <= 1e-5
