"""The bag embedding inside Megatron's own embedding room, over tensor- and sequence-parallel
ranks."""

from types import SimpleNamespace

import pytest
import torch
from processes import run_ranks

VOCABULARY, HIDDEN, BATCH, POSITIONS = 32, 6, 2, 4
BAG_SIZES = (2, 3, 4)


def make_case(bag_size):
    generator = torch.Generator().manual_seed(bag_size)
    table = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    tokens = torch.randint(0, VOCABULARY, (BATCH, POSITIONS, bag_size), generator=generator)
    tokens[0, 0] = tokens[0, 0, 0]  # one token fills a bag
    grad = torch.randn(POSITIONS, BATCH, HIDDEN, generator=generator)
    return table, tokens, grad


LAYOUTS = {"tp1": (1, False), "tp2": (2, False), "tp2-sequence-parallel": (2, True)}


def embed_on_this_rank():
    """Every layout in one process group, since starting Megatron is what takes time."""
    from tst_megatron.megatron.cpu import host

    host.install()
    from megatron.core import parallel_state

    elements = count_elements_on_the_wire()
    results = {}
    for name, (size, sequence_parallel) in LAYOUTS.items():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=size)
        results[name] = embed_in_layout(size, sequence_parallel, elements)
        parallel_state.destroy_model_parallel()
    return results


def embed_in_layout(size, sequence_parallel, elements):
    from megatron.core import parallel_state
    from megatron.core.models.common.embeddings.language_model_embedding import (
        LanguageModelEmbedding,
    )
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.transformer_config import TransformerConfig

    from tst_megatron.model.embedding import BagEmbedding

    model_parallel_cuda_manual_seed(1)
    group = parallel_state.get_tensor_model_parallel_group()
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        tensor_model_parallel_size=size,
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
    )
    room = LanguageModelEmbedding(config, VOCABULARY, POSITIONS, "rope", tp_group=group)
    BagEmbedding.take_over(room.word_embeddings)
    results = {}
    for bag_size in BAG_SIZES:
        table, tokens, grad = make_case(bag_size)
        rows = VOCABULARY // size
        weight = room.word_embeddings.weight
        weight.data.copy_(table[group.rank() * rows : (group.rank() + 1) * rows])
        weight.grad = None
        elements.clear()
        out = room(tokens, position_ids=None)
        moved = sum(elements)
        length = out.shape[0]
        part = grad[group.rank() * length :][:length] if sequence_parallel else grad
        (out * part).sum().backward()
        elements.clear()
        # As a step of bags leaves it, and Megatron after it where there are CUDA graphs.
        weight.grad_added_to_main_grad = True
        room(tokens[..., 0], position_ids=None)
        results["mark after a look-up"] = weight.grad_added_to_main_grad
        del weight.grad_added_to_main_grad
        results[bag_size] = (out.detach(), weight.grad.clone(), moved, sum(elements))
    return results


def count_elements_on_the_wire():
    """The elements that each collective of the embedding is given, as they are moved."""
    from megatron.core.tensor_parallel import mappings

    elements = []
    for owner, name, place in (
        (torch.distributed, "all_reduce", 0),
        (mappings, "dist_reduce_scatter_func", 1),
    ):
        original = getattr(owner, name)

        def counted(*args, _original=original, _place=place, **kwargs):
            elements.append(args[_place].numel())
            return _original(*args, **kwargs)

        setattr(owner, name, counted)
    return elements


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(embed_on_this_rank, 2)


@pytest.fixture(params=LAYOUTS)
def layout(request, ranks):
    size, sequence_parallel = LAYOUTS[request.param]
    return size, sequence_parallel, [rank[request.param] for rank in ranks[:size]]


@pytest.mark.parametrize("bag_size", BAG_SIZES)
def test_output_and_gradient_equal_the_mean_of_lookups(layout, bag_size):
    _, sequence_parallel, ranks = layout
    table, tokens, grad = make_case(bag_size)
    table.requires_grad_()
    slots = [torch.nn.functional.embedding(tokens[..., k], table) for k in range(bag_size)]
    expected = (sum(slots) / bag_size).transpose(0, 1)
    (expected * grad).sum().backward()
    outputs = [rank[bag_size][0] for rank in ranks]
    whole = [torch.cat(outputs)] if sequence_parallel else outputs
    for output in whole:
        torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    table_grad = torch.cat([rank[bag_size][1] for rank in ranks])
    torch.testing.assert_close(table_grad, table.grad, atol=1e-6, rtol=1e-5)


def test_ordinary_look_up_takes_back_that_the_gradient_is_in_the_buffer(layout):
    """Else data parallelism would pass over every gradient of the recovery phase."""
    _, _, ranks = layout
    assert [rank["mark after a look-up"] for rank in ranks] == [False] * len(ranks)


@pytest.mark.parametrize("bag_size", BAG_SIZES)
def test_collective_carries_one_vector_per_bag(layout, bag_size):
    size, _, ranks = layout
    for rank in ranks:
        _, _, moved, moved_by_one_lookup = rank[bag_size]
        # K look-ups would move K times what one does.
        assert moved == moved_by_one_lookup == (0 if size == 1 else POSITIONS * BATCH * HIDDEN)


@pytest.mark.parametrize(("num_ranks", "on_the_wire"), [(2, torch.bfloat16), (4, torch.float32)])
@pytest.mark.parametrize("scatters", [False, True])
def test_shares_of_many_ranks_cross_in_fp32(monkeypatch, num_ranks, on_the_wire, scatters):
    """Rounded before they are summed, they would double the error over 8 ranks."""
    from tst_megatron.megatron.cpu import host

    host.install()
    from tst_megatron.model import embedding

    moved = []

    def collective(tensor, group):
        moved.append(tensor.dtype)
        return tensor

    for name in ("from_tensor_model_parallel", "scatter_to_sequence_parallel"):
        monkeypatch.setattr(embedding, f"reduce_{name}_region", collective)
    room = embedding.BagEmbedding.__new__(embedding.BagEmbedding)
    torch.nn.Module.__init__(room)
    table, tokens, _ = make_case(4)
    room.weight = torch.nn.Parameter(table.bfloat16())
    room.tp_group = SimpleNamespace(size=lambda: num_ranks)
    room.vocab_start_index, room.reduce_scatter_embeddings = 0, scatters
    out = room(tokens)
    assert moved == [on_the_wire]
    shape = (POSITIONS, BATCH, HIDDEN) if scatters else (BATCH, POSITIONS, HIDDEN)
    assert (out.dtype, out.shape) == (torch.bfloat16, shape)
