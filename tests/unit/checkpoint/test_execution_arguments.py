"""The arguments of a model that say how to run it, which one process that reads it resets."""

import re

from tst_megatron.checkpoint.reader.arguments import execution_arguments
from tst_megatron.recipe.keys.run_keys import MODEL_KEYS
from tst_megatron.recipe.keys.table import argument_parser, destination_of

BY_NAME = re.compile(
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
"""The names by which such arguments can be told, a second account beside the table."""

WITHOUT_EFFECT = {
    # Data parallelism and the validation of arguments read them; one process has neither.
    *("ddp_bucket_size", "ddp_num_buckets", "ddp_pad_buckets_for_high_nccl_busbw"),
    *("num_distributed_optimizer_instances", "use_tp_pp_dp_mapping"),
    *("num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank"),
    # Offloading reads them, and that is off.
    *("min_offloaded_tensor_size", "delta_offload_bytes_across_pp_ranks"),
}


def test_arguments_told_by_the_table_are_those_told_by_their_names():
    destinations = {option.dest for option in argument_parser()._actions}
    by_name = {name for name in destinations if BY_NAME.fullmatch(name)}
    assert execution_arguments() == by_name | WITHOUT_EFFECT


def test_no_argument_of_the_architecture_is_among_them():
    assert not execution_arguments() & {destination_of(key) for key in MODEL_KEYS}
    assert "make_vocab_size_divisible_by" not in execution_arguments()
