"""The rules of a start in another layout, on namespaces of arguments; no Megatron."""

from types import SimpleNamespace

import pytest

from tst_megatron.checkpoint.resharding import (
    changes,
    layout_of,
    reshard_notes,
    reshard_problems,
)
from tst_megatron.recipe.keys.kinds import LAYOUT_KEYS
from tst_megatron.recipe.padding import padded_vocabulary

BUCKETS = {"distrib_optim_sharding_type": "dp_reshardable"}
MODEL = {"distrib_optim_sharding_type": "fully_reshardable"}
NONE: dict = {}


def arguments(**more):
    """Validated arguments of a job of one rank, as far as the rules read them."""
    plain = {
        "world_size": 1,
        "data_parallel_size": 1,
        "tensor_model_parallel_size": 1,
        "sequence_parallel": False,
        "context_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": 1,
        "num_experts": 4,
        "num_distributed_optimizer_instances": 1,
        "overlap_grad_reduce": False,
        "ddp_num_buckets": None,
        "ddp_bucket_size": None,
        "vocab_size": 500,
        "make_vocab_size_divisible_by": 128,
        "padded_vocab_size": None,
        "rerun_mode": "validate_results",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "moe_router_load_balancing_type": "aux_loss",
        "moe_expert_capacity_factor": None,
    }
    assert set(more) <= set(plain) | {"pipeline_model_parallel_layout"}
    args = SimpleNamespace(**{**plain, **more})
    # As `check` states it where the recipe does not.
    args.padded_vocab_size = args.padded_vocab_size or padded_vocabulary(args.vocab_size, args)
    return args


def problems(content, saved=None, now=None, rerun=None):
    saved, now = arguments(**(saved or {})), arguments(**(now or {}))
    return reshard_problems(saved, now, content=content, rerun=rerun)


CUT_OTHERWISE = [
    ("tensor-model-parallel-size 1 -> 2", {}, {"tensor_model_parallel_size": 2}),
    (
        "pipeline-model-parallel-size 4 -> 2",
        {"pipeline_model_parallel_size": 4},
        {"pipeline_model_parallel_size": 2},
    ),
    ("virtual pipeline stages None -> 2", {}, {"virtual_pipeline_model_parallel_size": 2}),
    (
        "pipeline-model-parallel-layout Et|t|tL -> Et|tt|L",
        {"pipeline_model_parallel_layout": "Et|t|tL"},
        {"pipeline_model_parallel_layout": "Et|tt|L"},
    ),
    (
        "expert-model-parallel-size 2 -> 4",
        {"expert_model_parallel_size": 2},
        {"expert_model_parallel_size": 4},
    ),
    ("expert-model-parallel-size 1 -> 2", {}, {"expert_model_parallel_size": 2}),
    ("expert-tensor-parallel-size 2 -> 1", {"expert_tensor_parallel_size": 2}, {}),
    ("num-distributed-optimizer-instances 1 -> 2", {}, {"num_distributed_optimizer_instances": 2}),
    (
        "gradient bucket of all parameters -> 40,000,000 parameters",
        {},
        {"overlap_grad_reduce": True},
    ),
    (
        "gradient bucket of 1/4 of the parameters -> 1/8 of the parameters",
        {"overlap_grad_reduce": True, "ddp_num_buckets": 4},
        {"overlap_grad_reduce": True, "ddp_num_buckets": 8},
    ),
    # More than 40 data-parallel ranks make Megatron's default bucket larger.
    (
        "gradient bucket of 40,000,000 parameters -> 64,000,000 parameters",
        {"overlap_grad_reduce": True, "data_parallel_size": 32},
        {"overlap_grad_reduce": True, "data_parallel_size": 64},
    ),
]


@pytest.mark.parametrize(("said", "saved", "now"), CUT_OTHERWISE)
def test_what_cuts_the_buckets_otherwise_needs_the_other_format(said, saved, now):
    same_rows = {"make_vocab_size_divisible_by": 512}
    saved, now = {**same_rows, **saved}, {**same_rows, **now}
    if now.get("tensor_model_parallel_size") == 2:
        now["make_vocab_size_divisible_by"] = 256
    (problem,) = problems(BUCKETS, saved, now)
    assert problem == (
        f"{said}: the checkpoint's optimizer state was saved without "
        "dist-ckpt-optim-fully-reshardable, and loads into another number of data-parallel ranks "
        "alone. Go on in the old layout with dist-ckpt-optim-fully-reshardable: true until the run "
        "has saved a checkpoint, and change the layout then"
    )
    assert problems(MODEL, saved, now) == []


def test_data_parallel_size_may_change_in_every_format():
    more = {"world_size": 8, "data_parallel_size": 8}
    for content in (BUCKETS, MODEL, NONE):
        assert problems(content, {}, more) == problems(content, more, {}) == []
    sized = {"overlap_grad_reduce": True, "ddp_bucket_size": 7}
    assert problems(BUCKETS, {**sized, **more}, {**sized, "data_parallel_size": 64}) == []


def test_all_that_differs_is_one_sentence_with_the_old_and_the_new():
    now = {"pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2, "world_size": 4}
    (problem,) = problems(BUCKETS, {}, now)
    assert problem.startswith("pipeline-model-parallel-size 1 -> 2, expert-model-parallel-size 1 ")


def test_padded_vocabulary_must_stay_and_the_message_says_how():
    (problem,) = problems(MODEL, {}, {"tensor_model_parallel_size": 3})
    assert problem == (
        "make-vocab-size-divisible-by: 128 x tensor-model-parallel-size 3 pads the vocabulary to "
        "768, and the checkpoint's has 512 rows, over which the loss is taken. Use a "
        "tensor-model-parallel-size that divides 512"
    )
    (problem,) = problems(MODEL, {}, {"tensor_model_parallel_size": 8})
    assert problem.endswith("Set make-vocab-size-divisible-by: 64")
    advised = {"tensor_model_parallel_size": 8, "make_vocab_size_divisible_by": 64}
    assert problems(MODEL, {}, advised) == []
    assert problems(MODEL, {}, {"make_vocab_size_divisible_by": 256}) == []


def test_padded_vocabulary_is_a_multiple_of_both():
    for vocab_size, divisor, tensor, rows in (
        (500, 128, 1, 512),
        (512, 128, 4, 512),
        (513, 1, 2, 514),
    ):
        args = arguments(
            make_vocab_size_divisible_by=divisor,
            tensor_model_parallel_size=tensor,
        )
        assert padded_vocabulary(vocab_size, args) == rows


@pytest.mark.parametrize(
    ("saved", "now", "fix"),
    [
        (1, 2, "Use expert-parallel size 1, and no other expert-tensor- than tensor-parallel size"),
        (4, 1, "Use an expert-parallel size above 1"),
    ],
)
def test_experts_own_optimizer_needs_the_distributed_one_to_come_or_go(saved, now, fix):
    sizes = {"expert_model_parallel_size": saved}, {"expert_model_parallel_size": now}
    (problem,) = problems(NONE, *sizes)
    assert problem.startswith(f"expert-model-parallel-size: {saved} -> {now}: ")
    assert problem.endswith(fix)
    assert problems(MODEL, *sizes) == []
    dense = [{**size, "num_experts": None} for size in sizes]
    assert problems(NONE, *dense) == []


def test_expert_tensor_size_of_their_own_gives_experts_an_optimizer_of_their_own():
    usual, own = {}, {"expert_tensor_parallel_size": 2}
    for saved, now in ((usual, own), (own, usual)):
        (problem,) = problems(NONE, saved, now)
        assert "1 with expert-tensor-parallel-size 2" in problem
        assert problems(MODEL, saved, now) == []
    both = {"expert_model_parallel_size": 2, **own}
    assert problems(NONE, both, own) == []


def test_vocabulary_that_the_recipe_pads_itself_stays():
    wider = {"tensor_model_parallel_size": 2, "make_vocab_size_divisible_by": 512}
    assert problems(MODEL, {}, wider)
    stated = {"padded_vocab_size": 512}
    assert problems(MODEL, stated, {**wider, **stated}) == []


def test_model_that_got_the_rows_of_its_tokenizer_is_named():
    """As runs of older versions did, whatever the recipe's vocab-size."""
    (problem,) = problems(
        MODEL, {"vocab_size": 1000, "padded_vocab_size": 512}, {"vocab_size": 1000}
    )
    assert problem.startswith("vocab-size: 1000 is more than the 512 rows of the checkpoint, whose")
    assert problem.endswith("or start again in another --run-folder")


def test_without_the_distributed_optimizer_sizes_above_1_may_change():
    saved, now = {"expert_model_parallel_size": 2}, {"expert_model_parallel_size": 4}
    assert problems(NONE, saved, {**now, "pipeline_model_parallel_size": 2}) == []


def test_search_for_a_fault_stays_in_its_layout():
    moved = {"world_size": 2, "data_parallel_size": 2}
    (problem,) = problems(MODEL, {}, moved, rerun="compute step 7 again on another node")
    assert problem.startswith("rerun-mode: the checkpoint was saved to compute step 7 again on ")
    assert "which now has number of ranks 1 -> 2. Start in the old layout first" in problem
    assert problems(MODEL, {}, {}, rerun="compute step 7 again") == []
    off = {**moved, "rerun_mode": "disabled"}
    assert problems(MODEL, {}, off, rerun="compute step 7 again") == []


def test_start_in_another_layout_says_old_and_new_and_what_to_expect():
    now = arguments(world_size=2, tensor_model_parallel_size=2, sequence_parallel=True)
    assert reshard_notes(arguments(), now, 12) == [
        "the layout changes after step 12: number of ranks 1 -> 2, tensor-model-parallel-size 1 -> "
        "2, sequence-parallel False -> True. The text that is read is the same; losses agree with "
        "those of the old layout to rounding, and not bit for bit"
    ]
    assert reshard_notes(now, now, 12) == []


@pytest.mark.parametrize(
    ("more", "warns_of"),
    [
        ({"hidden_dropout": 0.1}, "hidden-dropout"),
        ({"moe_expert_capacity_factor": 1.5}, "moe-expert-capacity-factor"),
        ({"moe_router_load_balancing_type": ["global_aux_loss", "aux_loss"]}, "moe-router-load"),
    ],
)
def test_what_differs_by_more_than_rounding_is_warned_of(more, warns_of):
    other = {"tensor_model_parallel_size": 2, "world_size": 4, "data_parallel_size": 2}
    _, warning = reshard_notes(arguments(**more), arguments(**more, **other), 12)
    assert warning.startswith(f"warning: {warns_of}")


def test_layout_is_plain_values_also_of_an_object():
    class Layout:
        def __str__(self):
            return "Et|tL"

    saved = arguments(pipeline_model_parallel_layout=Layout())
    assert layout_of(saved)["pipeline-model-parallel-layout"] == "Et|tL"
    assert changes(saved, arguments(pipeline_model_parallel_layout="Et|tL")) == []


def test_key_that_decides_what_an_auxiliary_loss_is_taken_over_is_no_layout():
    assert not {"micro-batch-size", "global-batch-size", "use-distributed-optimizer"} & set(
        LAYOUT_KEYS
    )
