"""What can be combined: parallel sizes with each other, and features with superposition."""

from __future__ import annotations

import argparse
import math

from tst_megatron.recipe.profiles import GPU_PROFILES
from tst_megatron.recipe.recipe import Recipe
from tst_megatron.system.packages import has_nvidia_resiliency_ext, has_transformer_engine

REFUSED = {
    "mtp-num-layers": "multi-token prediction shifts labels by one token, which means nothing for "
    "a bag. Remove it, or train without superposition (tst.bag-size 1)",
    "pipeline-model-parallel-layout": "with multi-token prediction on a stage of its own Megatron "
    "sends shapes between stages, on which the CPU host hangs. Put m into the last stage",
    "rampup-batch-size": "the position in the token stream is counted in batches of one size. Use "
    "a constant global-batch-size (rampup-batch-size and step-batch-size-schedule unset)",
    "cuda-graph-impl": "a full_iteration graph cannot hold the step of both phases. Use local or "
    "transformer_engine",
    "hybrid-context-parallel": "its batches are packed sequences, which a bag has no place in. "
    "Remove it",
    "iterations-to-skip": "skipped steps would break the count of raw tokens read. Remove it, and "
    "result-rejected-tracker-filename",
    "fp16": "Megatron passes over every step whose gradients overflow, so the learning rate and "
    "the checkpoint at the start of its decay lag behind the steps that the recipe counts, and a "
    "save before the first real step fails. Use bf16, as the paper and every GPU profile do",
    "loss-scale": "steps whose scaled gradients overflow are passed over without a word, and only "
    "fp16, which is refused, needs a scale. Remove it",
    "decrease-batch-size-if-needed": "the position in the token stream is counted in batches of "
    "one size. Remove it",
    "freeze-all-layers": "no step would change a weight. Remove it",
    "phase-transition-iterations": "it ends the job at a phase change, and the switch is made "
    "inside the run. Remove it",
    "train-samples": "phases are counted in steps. Use train-iters",
    "overlap-moe-expert-parallel-comm": "it overlaps CUDA streams, and the CPU host has none. "
    "Remove it, or use a GPU profile",
    "full-validation": "evaluation reads the same eval-iters batches every time. Remove it and "
    "multiple-validation-sets",
    "reset-position-ids": "positions and masks are those of latent positions, which may hold two "
    "documents. Remove it, reset-attention-mask and dataloader-inter-document-masking",
    "dataloader-type": "the token stream is read in order. Remove it",
    "hybrid-layer-pattern": "only GPT models take bags. Remove it",
    "ckpt-format": "only torch_dist checkpoints can be proven whole and gone on from. Remove it",
    "non-persistent-save-interval": "a run goes on from its checkpoints/ alone. Use save-interval, "
    "and tst.keep-last-checkpoints to keep few",
    "no-load-optim": "a resumed run would not be exact. Remove no-load-optim, no-load-rng, "
    "no-save-optim and no-save-rng",
    "use-checkpoint-args": "the recipe says what a run is. Remove it",
    "sft": "this is a pre-training tool. Remove sft, fim-data and perform-rl-step",
    "rerun-mode": "report_stats is refused by the very class it names. Use validate_results or "
    "disabled",
    "moe-router-force-load-balancing": "it routes at random, for benchmarks: the experts would "
    "learn nothing of their own. Remove it",
    "no-check-for-nan-in-loss-and-grad": "a NaN would go into the weights and into checkpoints "
    "unseen. Remove it",
    "moe-expert-rank-capacity-factor": "HybridEP drops the positions beyond it, which changes what "
    "is trained. Remove it, and moe-paged-stash with it",
    "fp8-format": "the CPU host has no arithmetic in 8 bits. Remove it, or use a GPU profile",
    "fp4-format": "the CPU host has no arithmetic in 4 bits. Remove it, or use a GPU profile",
    "qk-clip": "the largest logits come from Transformer Engine's attention, which the CPU host "
    "does not have. Remove it, or use a GPU profile",
    "hidden-dropout": "with dropout a resumed run on the CPU would not be exact. Set "
    "hidden-dropout and attention-dropout to 0",
}
"""What cannot be combined, and why."""


def async_save(
    recipe: Recipe, values: argparse.Namespace, given: set[str | None]
) -> tuple[list[str], list[str]]:
    """The flags that make Megatron save asynchronously when ``async-save`` asks for it.

    Megatron takes three that only work together: without a worker it saves synchronously after a
    warning, and its default strategy is that of a package that may be missing.

    Args:
        recipe: for its profile.
        values: what the recipe's keys came to.
        given: destinations of the keys that the recipe has.

    Returns:
        (flags to add, problems).
    """
    if not values.async_save:
        return [], []
    problems = []
    if "use_persistent_ckpt_worker" in given and not values.use_persistent_ckpt_worker:
        problems.append(
            "use-persistent-ckpt-worker: false beside async-save, which needs the worker. Remove "
            "one of the two"
        )
    has_nvrx = recipe.profile != "cpu" and has_nvidia_resiliency_ext()
    if "async_strategy" in given and values.async_strategy == "nvrx" and not has_nvrx:
        problems.append(
            "async-strategy: nvrx needs a GPU and nvidia-resiliency-ext (pip install "
            "nvidia-resiliency-ext). Remove the key, or use mcore"
        )
    flags = [] if values.use_persistent_ckpt_worker else ["--use-persistent-ckpt-worker"]
    if "async_strategy" not in given and not has_nvrx:
        flags += ["--async-strategy", "mcore"]
    return flags, problems


def context_parallel_problems(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """What context parallelism needs: Transformer Engine's attention, and positions that divide."""
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


def schedule_plan_problems(values: argparse.Namespace) -> list[str]:
    """What Megatron asks of a schedule plan when it builds the model, said before the queue."""
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
    """Ways to train in 8 bits that are known to diverge."""
    problems: list[str] = []
    if values.fp8 is None or values.fp8_recipe != "mxfp8":
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
    """What delayed weight gradients need beside graphs of attention, as Megatron asserts."""
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


def profile_problems(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """A GPU profile on the machine of the job, where Transformer Engine must be.

    A machine without a GPU, such as a login node, is not the job's.
    """
    # Imports torch, which takes seconds.
    from tst_megatron.megatron.cpu import host

    needs_it = recipe.profile in GPU_PROFILES and values.transformer_impl == "transformer_engine"
    if not needs_it or host.is_needed() or has_transformer_engine():
        return []
    return [
        f"profile: {recipe.profile} needs Transformer Engine, which is not installed. Install it "
        "(pip install --no-build-isolation 'transformer-engine[pytorch]'), or use its container"
    ]


def smallest_world_size(values: argparse.Namespace) -> int:
    """The fewest ranks that hold the model once."""
    model = max(1, _model_size(values))
    expert = values.expert_model_parallel_size * values.pipeline_model_parallel_size
    expert *= values.expert_tensor_parallel_size or values.tensor_model_parallel_size
    return math.lcm(model, max(1, expert))


def _model_size(values: argparse.Namespace) -> int:
    size = values.tensor_model_parallel_size * values.pipeline_model_parallel_size
    return int(size * values.context_parallel_size)


def parallel_problems(values: argparse.Namespace, world_size: int) -> list[str]:
    """Parallel sizes that do not divide the ranks, the model or the batch."""
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
    """What Megatron's interleaved schedule refuses at its first step."""
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
    """Numbers of the model that a parallel size must divide."""
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
    if values.num_experts and values.moe_router_topk > values.num_experts:
        problems.append(
            f"moe-router-topk: {values.moe_router_topk} of num-experts {values.num_experts} experts"
        )
    if values.num_experts and tensor > 1 and not values.sequence_parallel:
        problems.append(
            "sequence-parallel: Megatron trains experts beside tensor-model-parallel-size "
            f"{tensor} with it alone. Set it to true"
        )
    if expert > 1 and not values.num_experts:
        problems.append(f"expert-model-parallel-size: {expert} without num-experts")
    return problems


def combination_problems(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """What cannot be combined with token superposition, or with this version, and why."""
    is_on_cpu = recipe.profile == "cpu"
    bags = any(bag_size > 1 for bag_size, _ in _entries(recipe))
    is_dropped_out = max(values.hidden_dropout, values.attention_dropout) > 0
    is_masked = values.reset_position_ids or values.reset_attention_mask
    is_refused = {
        "mtp-num-layers": bags and values.mtp_num_layers,
        "pipeline-model-parallel-layout": is_on_cpu and _has_early_heads(values),
        "rampup-batch-size": values.rampup_batch_size or values.step_batch_size_schedule,
        "cuda-graph-impl": values.cuda_graph_impl == "full_iteration",
        "hybrid-context-parallel": values.hybrid_context_parallel,
        "iterations-to-skip": values.iterations_to_skip or values.result_rejected_tracker_filename,
        "fp16": values.fp16,
        "loss-scale": values.loss_scale,
        "decrease-batch-size-if-needed": values.decrease_batch_size_if_needed,
        "freeze-all-layers": values.freeze_all_layers,
        "phase-transition-iterations": values.phase_transition_iterations,
        "train-samples": values.train_samples,
        "overlap-moe-expert-parallel-comm": is_on_cpu and values.overlap_moe_expert_parallel_comm,
        "full-validation": values.full_validation or values.multiple_validation_sets,
        "reset-position-ids": is_masked or values.dataloader_inter_document_masking,
        "dataloader-type": values.dataloader_type not in (None, "single"),
        "hybrid-layer-pattern": values.hybrid_layer_pattern,
        "ckpt-format": values.ckpt_format != "torch_dist",
        "non-persistent-save-interval": values.non_persistent_save_interval,
        "no-load-optim": any(
            (values.no_load_optim, values.no_load_rng, values.no_save_optim, values.no_save_rng)
        ),
        "use-checkpoint-args": values.use_checkpoint_args,
        "sft": values.sft or values.fim_data or values.perform_rl_step,
        "rerun-mode": values.rerun_mode == "report_stats",
        "moe-router-force-load-balancing": values.moe_router_force_load_balancing,
        "no-check-for-nan-in-loss-and-grad": not values.check_for_nan_in_loss_and_grad,
        "moe-expert-rank-capacity-factor": values.moe_expert_rank_capacity_factor
        or values.moe_paged_stash,
        "hidden-dropout": is_on_cpu and is_dropped_out,
        "fp8-format": is_on_cpu and values.fp8,
        "fp4-format": is_on_cpu and values.fp4,
        "qk-clip": is_on_cpu and values.qk_clip,
    }
    problems = [f"{key}: {REFUSED[key]}" for key, refused in is_refused.items() if refused]
    if not is_on_cpu:
        problems += schedule_plan_problems(values)
    problems += fp8_problems(values)
    problems += delayed_gradient_problems(values)
    return [*problems, *context_parallel_problems(recipe, values)]


def _has_early_heads(values: argparse.Namespace) -> bool:
    """Whether a layout of stages puts multi-token prediction before the last of them."""
    layout = str(values.pipeline_model_parallel_layout or "")
    return bool(values.mtp_num_layers) and "m" in layout.rpartition("|")[0]


def _entries(recipe: Recipe) -> list[tuple[int, float | int | None]]:
    try:
        return recipe.tst.entries()
    except (TypeError, ValueError):
        return []
