"""Micro-batches in flight, against what Megatron's schedules say of small pipelines."""

from types import SimpleNamespace

import pytest

from tst_megatron.plan.memory.pipeline import in_flight


def job(stages, *, micro_batches, chunks=None, overlap=False):
    return SimpleNamespace(
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=chunks,
        microbatch_group_size_per_vp_stage=None,
        global_batch_size=micro_batches,
        micro_batch_size=1,
        data_parallel_size=1,
        overlap_moe_expert_parallel_comm=overlap,
    )


def most(args, stage):
    return max(flying.total() for _, flying in in_flight(args, stage))


@pytest.mark.parametrize(("stage", "expected"), [(0, 4), (1, 3), (2, 2), (3, 1)])
def test_stage_holds_as_many_micro_batches_as_stages_follow_and_its_own(stage, expected):
    assert most(job(4, micro_batches=16), stage) == expected


def test_no_more_are_in_flight_than_a_step_has():
    assert most(job(4, micro_batches=2), 0) == 2
    assert most(job(1, micro_batches=8), 0) == 1


def test_exchange_beside_computation_needs_one_more():
    assert most(job(1, micro_batches=8, overlap=True), 0) == 2


@pytest.mark.parametrize("stages", [2, 4])
def test_virtual_stages_hold_more_by_one_minus_a_stage_over_all_chunks(stages):
    # (1 + (p - 1) / (p v)) p v chunks: arXiv 2205.05198, section 4.2.3.
    chunks = 2
    assert most(job(stages, micro_batches=8 * stages, chunks=chunks), 0) == pytest.approx(
        stages * chunks * (1 + (stages - 1) / (stages * chunks))
    )


def test_backward_passes_begin_with_the_last_chunk():
    first, flying = next(in_flight(job(2, micro_batches=8, chunks=2), 0))
    assert first == 1
    assert flying == {0: 3, 1: 2}
