"""Turn the arguments of a model trained in any layout into those of one CPU process."""

from __future__ import annotations

import argparse
import copy
import re

import torch

from tst_megatron.checkpoint.reader.process import in_one_process

# Arguments that say how to run and not what the model computes go back to Megatron's defaults. An
# unknown one stays as saved, so that a new architecture setting is never dropped in silence.
_EXECUTION = re.compile(
    r"tensor_model_parallel_size|context_parallel_size|sequence_parallel|expert_tensor_parallel_size"
    r"|(virtual_)?pipeline_model_parallel_.*|decoder_(first|last)_pipeline_num_layers"
    r"|expert_model_parallel_size|account_for_.*_in_pipeline_split|microbatch_group_size_.*"
    r"|hierarchical_context_parallel_sizes|hybrid_context_parallel|cp_comm_type"
    r"|(expert_)?gtp_.*|(expert_)?tensor_parallel_num_weight_shards"
    r"|(delay|overlap|defer|tp_comm|recompute|cuda_graph|cpu_offloading|offload|inference)_.*"
    r"|(fine_grained_.*|activation_)offload.*|distribute_saved_activations|wgrad_deferral_limit"
    r"|fp[48](_.*)?|bf16|fp16|first_last_layers_bf16|num_layers_at_(start|end)_in_bf16"
    r"|te_precision_config_file|te_rng_tracker|use_te_activation_func|use_transformer_engine_op_fuser"
    r"|kitchen_.*|use_kitchen.*|fused_residual_rmsnorm|batch_invariant_mode|symmetric_ar_type"
    r"|moe_(enable_deepep|permute_fusion.*|router_fusion|router_padding_for_.*|paged_stash.*)"
    r"|moe_(grouped_gemm|token_dispatcher_type|flex_.*|deepep_.*|hybridep_.*|ncclep_.*)"
    r"|moe_(pad_experts_for_.*|shared_expert_overlap|enable_routing_replay|single_grouped_.*)"
    r"|moe_(per_layer_logging|layer_recompute|routing_trace_.*|mlp_glu_interleave_size)"
    r"|(enable|external)_cuda_graph|use_grouped_gemm_for_.*|high_priority_.*|mlp_chunks_for_.*"
    r"|nccl_.*|use_ring_exchange_p2p|variable_seq_lengths|flash_.*|deterministic_mode"
    r"|qk_clip(_.*)?|log_max_attention_logit|moe_input_jitter_eps|cross_entropy_.*"
    r"|ep_overlap_.*|config_logger_dir|restore_modelopt_state|init_model_with_meta_device"
)


def for_one_process(args: argparse.Namespace, dtype: torch.dtype) -> argparse.Namespace:
    """Return the same model's arguments for one CPU process.

    Args:
        args: Megatron's arguments as saved in a checkpoint.
        dtype: type of the weights in memory.
    """
    in_one_process()
    # Importing Megatron needs the CPU host, which the line before installs.
    from tst_megatron.megatron.distributed_checkpoint.model import (
        default_arguments,
        unfused_attention,
    )

    ours = copy.copy(args)
    for name, default in vars(default_arguments()).items():
        if not hasattr(ours, name) or _EXECUTION.fullmatch(name):
            setattr(ours, name, default)
    # Set by Megatron's validation, not by its parser.
    ours.virtual_pipeline_model_parallel_size = None
    ours.expert_tensor_parallel_size = 1
    ours.params_dtype = dtype
    ours.transformer_impl = "local"
    ours.attention_backend = unfused_attention()
    ours.moe_token_dispatcher_type = "alltoall"
    ours.use_cpu_initialization = True
    ours.perform_initialization = False
    ours.no_persist_layer_norm = True
    for fusion in ("masked_softmax", "bias_dropout", "bias_swiglu", "bias_gelu"):
        setattr(ours, f"{fusion}_fusion", False)
    ours.gradient_accumulation_fusion = ours.apply_rope_fusion = False
    ours.attention_dropout = ours.hidden_dropout = 0.0
    return ours
