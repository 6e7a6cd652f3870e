"""``overlap-moe-expert-parallel-comm``: Megatron runs a plan of the model's pieces instead of it.

The plan needs CUDA streams to be worth anything, and Megatron allows it in half precision alone.
Here both are passed by, so that its pieces run one after the other and in fp32: what they compute
must be what the model computes.
"""

import pytest
import torch
from one_layout import SAMPLES, raw_tokens, recipe, step, worst_error
from one_step import build, start
from processes import run_ranks

# The plan frees what it has sent to other ranks, so it needs some: expert parallelism is in each.
LAYOUTS = {
    "expert parallel": {},
    # Each rank has a chunk in the middle, which holds no batch.
    "virtual pipeline": {
        "pipeline_model_parallel_size": 2,
        "num_virtual_stages_per_pipeline_rank": 2,
    },
}


def gradients(tokenizer):
    """Of both bag sizes under both schedules: {case: (gradients, reports, plans built)}."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.utils import get_model_config

    # The only thing that the plan wants of a tensor and that one on the CPU does not have.
    torch.Tensor.record_stream = lambda tensor, stream: None
    plans = []
    build_plan = GPTModel.build_schedule_plan
    GPTModel.build_schedule_plan = lambda *a, **k: plans.append(build_plan(*a, **k)) or plans[-1]
    found = {}
    for layout, changes in LAYOUTS.items():
        samples = SAMPLES * (2 if changes else 4)
        args = start(
            recipe(
                tokenizer,
                expert_model_parallel_size=2,
                num_layers=4,
                micro_batch_size=1,
                global_batch_size=samples,
                **changes,
            )
        )
        models = build(args)
        for bag_size in (1, 4):
            # Data-parallel ranks have texts of their own, which cross the expert-parallel group.
            shift = parallel_state.get_data_parallel_rank()
            tokens = raw_tokens(bag_size).roll(shift, dims=1)
            for schedule in ("ordinary", "plan"):
                for model in models:
                    config = get_model_config(model)
                    config.overlap_moe_expert_parallel_comm = schedule == "plan"
                plans.clear()
                result = step(args, models, bag_size, tokens)
                found[layout, schedule, bag_size] = (*result, len(plans))
    return found


@pytest.fixture(scope="module")
def found(text):
    return run_ranks(gradients, 4, text / "tokenizer.model", preload="preloaded")


@pytest.mark.parametrize("bag_size", [1, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_plan_gives_the_losses_and_gradients_of_the_model(found, layout, bag_size):
    for rank in found:
        grads, reports, num_plans = rank[layout, "plan", bag_size]
        reference, expected, num_none = rank[layout, "ordinary", bag_size]
        assert num_none == 0
        assert num_plans >= 4
        assert reports == expected
        assert worst_error(grads, reference) <= 1e-6
    name = "bag loss" if bag_size > 1 else "lm loss"
    assert [list(report) for report in found[-1][layout, "plan", bag_size][1]] == 4 * [[name]]
