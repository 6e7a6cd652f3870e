"""What ``check`` says of context parallelism, schedule plans and heads on a stage of their own."""

import pytest

from tst_megatron.megatron.cpu import host

host.install()

from checks import check, problems

TST = {"bag-size": 4, "superposition-fraction": 0.4}


def only_problem(text, tst=None, **changes):
    (problem,) = problems(text, tst, **changes)
    return problem


def test_heads_on_a_stage_of_their_own_are_refused_on_the_cpu_host_alone(text):
    heads = {"mtp_num_layers": 1, "pipeline_model_parallel_size": 2}
    problem = only_problem(text, **heads, pipeline_model_parallel_layout="Et|t|m|L")
    assert problem.startswith("pipeline-model-parallel-layout: with multi-token prediction on a")
    assert check(text, **heads, pipeline_model_parallel_layout="Et|tmL").schedule.num_steps == 20


@pytest.mark.parametrize(
    ("changes", "is_installed", "said"),
    [
        ({}, False, "which is not installed. Install it (pip install "),
        ({"transformer_impl": "local"}, True, "transformer-impl=local do not have. Use 1"),
    ],
)
def test_context_parallelism_is_refused_without_transformer_engine(
    text, monkeypatch, changes, is_installed, said
):
    monkeypatch.setattr(
        "tst_megatron.recipe.rules.parallel_sizes.has_transformer_engine", lambda: is_installed
    )
    problem = only_problem(text, TST, profile=None, context_parallel_size=2, **changes)
    assert problem.startswith("context-parallel-size: 2 needs Transformer Engine's attention")
    assert said in problem


def test_latent_positions_must_divide_into_two_chunks_for_each_context_parallel_rank(
    text, monkeypatch
):
    monkeypatch.setattr(
        "tst_megatron.recipe.rules.parallel_sizes.has_transformer_engine", lambda: True
    )
    wanted = {"profile": None, "context_parallel_size": 4}
    assert only_problem(text, TST, seq_length=36, **wanted) == (
        "seq-length: 36 latent positions do not divide into 2 x context-parallel-size 4 = 8 "
        "chunks, of which each rank takes an early and a late one. Use a multiple of 8"
    )
    assert check(text, TST, seq_length=40, **wanted).world_size == 4


PLAN = {
    "profile": None,
    "bf16": True,
    "expert_model_parallel_size": 2,
    "overlap_moe_expert_parallel_comm": True,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bf16": False}, "needs bf16"),
        ({"expert_model_parallel_size": 1}, "needs expert-model-parallel-size above 1"),
        ({"pipeline_model_parallel_size": 2}, "needs virtual stages"),
        ({"moe_token_dispatcher_type": "allgather"}, "alltoall or flex"),
        (
            {"recompute_granularity": "full", "recompute_method": "block"},
            "cannot go with recompute-granularity full",
        ),
        ({"moe_shared_expert_overlap": True}, "cannot go with moe-shared-expert-overlap"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_schedule_plan_needs_is_said_before_the_queue(text, changes, said):
    problem = only_problem(text, TST, **{**PLAN, **changes})
    assert problem.startswith("overlap-moe-expert-parallel-comm: ")
    assert said in problem


def test_a_schedule_plan_is_let_through_where_there_is_a_gpu(text):
    assert check(text, TST, **PLAN).world_size == 2
    stages = {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}
    assert check(text, TST, **PLAN, num_layers=4, **stages).world_size == 4
