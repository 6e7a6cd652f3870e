"""Check that parallel sizes divide the ranks, the model and the batch of a run."""

from __future__ import annotations

import argparse
import math

from tst_megatron.recipe.profiles import GPU_PROFILES
from tst_megatron.recipe.recipe import Recipe
from tst_megatron.system.packages import has_transformer_engine


def smallest_world_size(values: argparse.Namespace) -> int:
    """Return the fewest ranks that hold the model once."""
    model = max(1, _model_size(values))
    expert = values.expert_model_parallel_size * values.pipeline_model_parallel_size
    expert *= values.expert_tensor_parallel_size or values.tensor_model_parallel_size
    return math.lcm(model, max(1, expert))


def _model_size(values: argparse.Namespace) -> int:
    size = values.tensor_model_parallel_size * values.pipeline_model_parallel_size
    return int(size * values.context_parallel_size)


def parallel_problems(values: argparse.Namespace, world_size: int) -> list[str]:
    """List parallel sizes that do not divide the ranks, the model or the batch."""
    tensor, pipeline = values.tensor_model_parallel_size, values.pipeline_model_parallel_size
    expert, context = values.expert_model_parallel_size, values.context_parallel_size
    problems = []
    if min(tensor, pipeline, expert, context) < 1:
        return ["parallel sizes: each is 1 or more"]
    model = _model_size(values)
    if world_size % model:
        problems.append(
            f"tensor-model-parallel-size: {world_size} ranks do not divide into tensor {tensor} x "
            f"pipeline {pipeline} x context {context} = {model}. Use a multiple of {model} ranks"
        )
    problems += _divisions(values, tensor, pipeline, expert)
    expert_model = (values.expert_tensor_parallel_size or tensor) * expert * pipeline
    if values.num_experts and world_size % expert_model:
        problems.append(
            f"expert-model-parallel-size: {world_size} ranks do not divide into expert {expert} x "
            f"expert-tensor {expert_model // (expert * pipeline)} x pipeline {pipeline} = "
            f"{expert_model}. Use a multiple of {expert_model} ranks"
        )
    micro, batch = values.micro_batch_size, values.global_batch_size
    replicas = world_size // model
    if micro and batch and replicas and batch % (micro * replicas):
        problems.append(
            f"global-batch-size: {batch} is not a multiple of micro-batch-size {micro} x "
            f"{replicas} data-parallel ranks = {micro * replicas}"
        )
    elif micro and batch and replicas:
        problems += _interleaving_problems(values, batch // (micro * replicas))
    return problems


def _interleaving_problems(values: argparse.Namespace, num_micro_batches: int) -> list[str]:
    """List what Megatron's interleaved schedule refuses at its first step."""
    pipeline = values.pipeline_model_parallel_size
    if not (
        values.num_layers_per_virtual_pipeline_stage or values.num_virtual_stages_per_pipeline_rank
    ):
        return []
    group = values.microbatch_group_size_per_vp_stage or pipeline
    if pipeline <= group <= num_micro_batches and not 0 < num_micro_batches % group < pipeline:
        return []
    return [
        f"global-batch-size: {num_micro_batches} micro-batches for each data-parallel rank cannot "
        f"be interleaved over {pipeline} pipeline stages in groups of {group}. Use a multiple of "
        f"{pipeline} micro-batches, and leave microbatch-group-size-per-virtual-pipeline-stage out"
    ]


def _divisions(values: argparse.Namespace, tensor: int, pipeline: int, expert: int) -> list[str]:
    """List numbers of the model that a parallel size must divide and does not."""
    groups = values.num_query_groups if values.group_query_attention else None
    # Megatron's own layouts of stages need not be even.
    is_even = not (
        values.pipeline_model_parallel_layout
        or values.decoder_first_pipeline_num_layers
        or values.decoder_last_pipeline_num_layers
        or values.account_for_embedding_in_pipeline_split
        or values.account_for_loss_in_pipeline_split
    )
    layers = values.num_layers if is_even else None
    positions = values.seq_length if values.sequence_parallel else None
    hidden, by_experts = values.moe_ffn_hidden_size or values.ffn_hidden_size, tensor
    by_key = "tensor-model-parallel-size"
    if values.expert_tensor_parallel_size:
        by_key, by_experts = "expert-tensor-parallel-size", values.expert_tensor_parallel_size
    wanted = (
        ("seq-length", positions, "tensor-model-parallel-size", tensor),
        ("moe-ffn-hidden-size", hidden if values.num_experts else None, by_key, by_experts),
        ("num-attention-heads", values.num_attention_heads, "tensor-model-parallel-size", tensor),
        ("num-query-groups", groups, "tensor-model-parallel-size", tensor),
        ("num-layers", layers, "pipeline-model-parallel-size", pipeline),
        ("num-experts", values.num_experts, "expert-model-parallel-size", expert),
    )
    problems = [
        f"{by}: {parts} does not divide {key} {number}"
        for key, number, by, parts in wanted
        if number and number % parts
    ]
    if values.num_experts and tensor > 1 and not values.sequence_parallel:
        problems.append(
            "sequence-parallel: Megatron trains experts beside tensor-model-parallel-size "
            f"{tensor} with it alone. Set it to true"
        )
    if expert > 1 and not values.num_experts:
        problems.append(f"expert-model-parallel-size: {expert} without num-experts")
    return problems


def context_parallel_problems(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """Check that context parallelism has the attention that it needs, and positions that divide."""
    size, key = values.context_parallel_size, "context-parallel-size"
    if size <= 1:
        return []
    problems = []
    if recipe.profile == "cpu" or values.transformer_impl == "local":
        problems.append(
            f"{key}: {size} needs Transformer Engine's attention, which the CPU host and "
            "transformer-impl=local do not have. Use 1"
        )
    elif recipe.profile not in GPU_PROFILES and not has_transformer_engine():
        problems.append(
            f"{key}: {size} needs Transformer Engine's attention, which is not installed. Install "
            "it (pip install --no-build-isolation 'transformer-engine[pytorch]'), or use 1"
        )
    length, chunks = values.seq_length, 2 * size
    if length and length % chunks:
        problems.append(
            f"seq-length: {length} latent positions do not divide into 2 x {key} {size} = {chunks} "
            f"chunks, of which each rank takes an early and a late one. Use a multiple of {chunks}"
        )
    return problems
