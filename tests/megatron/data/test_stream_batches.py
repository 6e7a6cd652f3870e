"""What Megatron's loaders hand to ranks: one global batch, whatever the ranks, workers or stops."""

import pytest
from streams import make_corpora, make_plan, open_stream

from tst_megatron.megatron.cpu import host

host.install()

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.training.datasets.data_samplers import MegatronPretrainingSampler

from tst_megatron.training.dataset import TrainingSamples

BATCH, STEPS = 16, 6


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Two corpora, three phases."""
    folder = tmp_path_factory.mktemp("corpora")
    lengths = [50, 7, 90, 31, 64, 23, 1] * 40
    corpora = make_corpora(folder, (3.0, lengths), (1.0, lengths[::-1]))
    entries = [(4, 2), (2, 1), (1, 1.0)]
    plan = make_plan(corpora, entries, num_steps=STEPS, length=8, batch=BATCH, unit_chunks=4)
    return open_stream(plan, corpora)


def rank_batches(stream, *, ranks, rank, micro_batch, workers=0, first_step=0):
    """The micro-batches of one data-parallel rank, as Megatron's loader cuts and reads them."""
    sampler = MegatronPretrainingSampler(
        total_samples=stream.plan.num_samples,
        consumed_samples=first_step * BATCH,
        micro_batch_size=micro_batch,
        data_parallel_rank=rank,
        data_parallel_size=ranks,
    )
    loader = torch.utils.data.DataLoader(
        TrainingSamples(stream), batch_sampler=sampler, num_workers=workers
    )
    return [batch["tokens"] for batch in loader]


def global_batches(stream, *, ranks, micro_batch, workers=0, first_step=0):
    """Each step's samples as sorted rows of tokens, over all ranks."""
    options = {"micro_batch": micro_batch, "workers": workers, "first_step": first_step}
    of_ranks = [rank_batches(stream, ranks=ranks, rank=rank, **options) for rank in range(ranks)]
    per_step = BATCH // (ranks * micro_batch)
    return [
        sorted(
            row.tolist()
            for batches in of_ranks
            for batch in batches[step * per_step : (step + 1) * per_step]
            for row in batch
        )
        for step in range(STEPS - first_step)
    ]


@pytest.fixture(scope="module")
def expected(stream):
    """Each step's samples, from the stream itself."""
    return [
        sorted(stream.tokens(sample).tolist() for sample in range(step * BATCH, (step + 1) * BATCH))
        for step in range(STEPS)
    ]


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=30)
@given(
    ranks=st.sampled_from([1, 2, 4, 8]),
    micro_batch=st.sampled_from([1, 2]),
    first_step=st.integers(0, STEPS - 1),
)
def test_ranks_of_any_number_share_the_same_global_batches_from_any_step(
    stream, expected, ranks, micro_batch, first_step
):
    sizes = {"ranks": ranks, "micro_batch": micro_batch, "first_step": first_step}
    assert global_batches(stream, **sizes) == expected[first_step:]


@pytest.mark.parametrize("workers", [1, 3])
def test_loader_workers_change_nothing(stream, expected, workers):
    sizes = {"ranks": 2, "micro_batch": 4}
    assert global_batches(stream, workers=workers, **sizes) == expected
    one, many = (rank_batches(stream, rank=1, workers=number, **sizes) for number in (0, workers))
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


def test_no_rank_reads_the_same_corpora_in_every_step(stream):
    """Without the shuffle of a step's samples each rank would: 3 to 1 comes round every 4."""
    for rank in range(4):
        patterns = {
            tuple(stream.plan.place(step * BATCH + 4 * rank + n).corpus for n in range(4))
            for step in range(STEPS)
        }
        assert len(patterns) > 1


def test_every_step_keeps_the_weights(stream):
    for step in range(STEPS):
        corpora = [
            stream.plan.place(sample).corpus for sample in range(step * BATCH, (step + 1) * BATCH)
        ]
        assert corpora.count(1) == 4
