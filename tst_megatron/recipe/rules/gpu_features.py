"""Check what Megatron's features for GPUs need of each other, before a job waits in a queue."""

from __future__ import annotations

import argparse
import os

from tst_megatron.recipe.recipe import Recipe

UNPICKLES = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
"""What Transformer Engine reads before it unpickles the state of delayed scaling (2.20)."""


def gpu_feature_problems(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """List combinations of features for GPUs that Megatron refuses, or that diverge."""
    # On the CPU host the key itself is refused (``refusals.py``).
    plan = [] if recipe.profile == "cpu" else schedule_plan_problems(values)
    return [*plan, *fp8_problems(values), *delayed_gradient_problems(values)]


def schedule_plan_problems(values: argparse.Namespace) -> list[str]:
    """List what Megatron asks of the overlapped exchange between experts as it builds the model."""
    if not values.overlap_moe_expert_parallel_comm:
        return []
    stages = (
        values.num_layers_per_virtual_pipeline_stage,
        values.num_virtual_stages_per_pipeline_rank,
        values.pipeline_model_parallel_layout,
    )
    is_broken = {
        "needs bf16": not values.bf16,
        "needs expert-model-parallel-size above 1": values.expert_model_parallel_size < 2,
        "needs virtual stages (num-virtual-stages-per-pipeline-rank) beside "
        "pipeline-model-parallel-size": values.pipeline_model_parallel_size > 1 and not any(stages),
        "needs moe-token-dispatcher-type alltoall or flex": values.moe_token_dispatcher_type
        not in ("alltoall", "flex"),
        "cannot go with recompute-granularity full": values.recompute_granularity == "full",
        "cannot go with moe-shared-expert-overlap": values.moe_shared_expert_overlap,
    }
    return [
        f"overlap-moe-expert-parallel-comm: {rule}. Change that, or remove it"
        for rule, broken in is_broken.items()
        if broken
    ]


def fp8_problems(values: argparse.Namespace) -> list[str]:
    """List ways to train in 8 bits that are known to diverge, or that cannot be resumed."""
    problems: list[str] = []
    if values.fp8 is None:
        return problems
    if values.fp8_recipe == "delayed" and os.environ.get(UNPICKLES) != "1":
        problems.append(
            "fp8-recipe: delayed scaling (Megatron's default) keeps its factors as pickles, which "
            "Transformer Engine 2.20 refuses to load, so no run could be resumed. Use blockwise "
            f"(Hopper), mxfp8 (Blackwell) or tensorwise; or set {UNPICKLES}=1 here and in the job, "
            "and then a checkpoint can run any code"
        )
    if values.fp8_recipe != "mxfp8":
        return problems
    if values.fp8 != "e4m3":
        problems.append(
            f"fp8-format: {values.fp8} with fp8-recipe mxfp8 takes E5M2 for gradients, which "
            "diverges (Megatron-Bridge#638). Use e4m3"
        )
    if values.fp8_param_gather and not (values.overlap_grad_reduce and values.overlap_param_gather):
        problems.append(
            "fp8-param-gather: with fp8-recipe mxfp8 and without both overlap-grad-reduce and "
            "overlap-param-gather the second step is NaN (Megatron-LM#2272). Set both to true, or "
            "fp8-param-gather to false"
        )
    return problems


def delayed_gradient_problems(values: argparse.Namespace) -> list[str]:
    """List what delayed weight gradients lack beside graphs of attention, as Megatron asserts."""
    modules = [str(getattr(each, "name", each)) for each in values.cuda_graph_modules or ()]
    has_attention = values.cuda_graph_impl == "transformer_engine" and "attn" in modules
    is_delayed = values.delay_wgrad_compute and values.overlap_grad_reduce
    if not (has_attention and is_delayed) or values.gradient_accumulation_fusion:
        return []
    return [
        "cuda-graph-modules: attn beside delay-wgrad-compute and overlap-grad-reduce needs "
        "gradient-accumulation-fusion (Apex), or gradients have no fixed address. Remove attn or "
        "delay-wgrad-compute, or set gradient-accumulation-fusion to true"
    ]
