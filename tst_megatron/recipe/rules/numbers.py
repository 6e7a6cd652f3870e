"""Check that every number in a recipe is within its bounds, and that numbers fit each other."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterator
from typing import Any

from tst_megatron.recipe.keys.table import argument_parser, key_of

MAY_BE_ZERO = frozenset(
    """
    activation_offload_fraction adlr_autoresume_interval async_ckpt_cpu_priority
    async_ckpt_io_priority attention_dropout ckpt_step clip_grad cpu_offloading_num_layers
    cuda_graph_warmup_steps decoupled_min_lr delta_offload_bytes_across_pp_ranks
    dsa_indexer_loss_coeff dsa_indexer_skip_topk_offset empty_unused_memory_level
    end_weight_decay error_injection_rate eval_iters exit_duration_in_mins
    fault_injector_delay_start_iteration fault_injector_fault_delay fault_injector_offset_seconds
    fault_injector_seed fim_fragment_rate fim_rate fim_spm_rate fp8_margin ft_num_warmup_iters
    glu_linear_offset hidden_dropout iterations_to_skip logging_level
    lr_warmup_fraction lr_warmup_init lr_warmup_iters lr_warmup_samples manual_gc_interval
    mask_prob mid_level_dataset_surplus min_lr moe_aux_loss_coeff moe_input_jitter_eps
    moe_paged_stash_buffer_size_factor_cpu moe_router_bias_update_rate
    moe_router_force_biased moe_router_quantile_balancing_ema moe_z_loss_coeff mscale
    mscale_all_dim mtp_loss_scaling_factor mtp_num_layers num_layers_at_end_in_bf16
    num_layers_at_start_in_bf16 num_workers optimizer_offload_fraction override_ckpt_iteration
    profile_ranks profile_step_start qk_clip_alpha sgd_momentum short_seq_prob start_eval_at_iter
    start_weight_decay tensorboard_queue_size tiktoken_num_special_tokens timing_log_level
    vocab_extra_ids weight_decay wgrad_deferral_limit yarn_beta_fast yarn_beta_slow
    adam_beta1 adam_beta2 lion_beta1 lion_beta2 muon_momentum rl_default_temperature
    """.split()
)
"""Numbers that may be 0, which means none, off or the first. All others are above 0."""

MAY_BE_NEGATIVE = frozenset(("glu_linear_offset", "null_tokenizer_pad_id", "null_tokenizer_eod_id"))

BELOW_ONE = (
    *("adam_beta1", "adam_beta2", "lion_beta1", "lion_beta2", "sgd_momentum", "muon_momentum"),
    *("hidden_dropout", "attention_dropout"),
)
"""Decay rates of averages, and shares that are dropped: with 1 nothing would be learned."""

AT_MOST_ONE = (
    *("lr_warmup_fraction", "rotary_percent", "optimizer_offload_fraction"),
    *("activation_offload_fraction", "moe_router_quantile_balancing_ema", "qk_clip_alpha"),
    *("mask_prob", "short_seq_prob", "fim_rate", "fim_spm_rate", "fim_fragment_rate"),
)
"""Shares."""

MOST = {
    "num_layers": 10_000,
    "mtp_num_layers": 100,
    "num_experts": 100_000,
    "hidden_size": 2**20,
    "ffn_hidden_size": 2**22,
    "moe_ffn_hidden_size": 2**22,
    "moe_shared_expert_intermediate_size": 2**22,
    "kv_channels": 2**16,
    "num_attention_heads": 2**16,
    "vocab_size": 2**28,
    "padded_vocab_size": 2**28,
    "make_vocab_size_divisible_by": 2**24,
    "seq_length": 2**31 - 1,
    # NumPy's, which Megatron gives it to.
    "seed": 2**32 - 1,
    "num_workers": 1024,
    "eval_iters": 10**9,
    # 65,536 ports.
    "straggler_ctrlr_port": 2**16 - 1,
}
"""A number above these is a typing error: no machine holds it."""

MOST_OF_ANY = 2**31 - 1
"""The largest number that the counters of every library hold."""

LARGE = frozenset(
    ("ddp_bucket_size", "suggested_communication_unit_size", "min_offloaded_tensor_size")
)
"""Counts of elements, which may be larger."""
MOST_OF_ELEMENTS = 2**60

LEAST, MOST_OF_FLOATS = 1e-38, 1e9
"""Bounds of fractions. 32 bits turn smaller ones into 0."""

LARGE_RATES = {
    **dict.fromkeys(("lr", "min_lr", "lr_warmup_init", "decoupled_lr", "decoupled_min_lr"), 10.0),
    **dict.fromkeys(("weight_decay", "start_weight_decay", "end_weight_decay"), 10.0),
    **dict.fromkeys(("init_method_std", "embedding_init_method_std"), 10.0),
    **dict.fromkeys(("moe_aux_loss_coeff", "moe_z_loss_coeff", "mtp_loss_scaling_factor"), 100.0),
}
"""A number above these is a typing error: the first steps would end in NaN."""

EPSILONS = 1.0
"""A number that only prevents a division by 0 must be below this."""


def number_problems(values: argparse.Namespace, given: Collection[str | None]) -> list[str]:
    """List the numbers with which no run is possible, each with the rule that it breaks.

    Args:
        values: what the recipe's keys came to.
        given: destinations of the keys that the recipe has. Megatron's defaults are not checked,
            even if the recipe writes them out.
    """
    problems = []
    default = argument_parser().get_default
    changed = (name for name in given if name and getattr(values, name) != default(name))
    for name in sorted(changed):
        for number in _numbers(getattr(values, name)):
            if rule := _broken_rule(name, number, getattr(values, name)):
                problems.append(f"{key_of(name)}: {number} {rule}")
    return [*problems, *_shape_problems(values, given)]


def _numbers(value: Any) -> Iterator[int | float]:
    for entry in value if isinstance(value, list | tuple) else [value]:
        if isinstance(entry, int | float) and not isinstance(entry, bool):
            yield entry


def _broken_rule(name: str, number: int | float, value: Any) -> str | None:
    """Return the rule that a number breaks; None if it breaks none.

    Args:
        name: the attribute that has it.
        number: one of its numbers.
        value: the attribute's value, which may be a list of numbers.
    """
    if not math.isfinite(number):
        return "is not a finite number"
    if name in _LAYER_LISTS and isinstance(value, list):
        return None if number in (0, 1) else "is neither 0 nor 1, the marks of a layer"
    if name == "window_size":
        return None if number >= -1 else "is below -1, which stands for no limit"
    if number < 0 and name not in MAY_BE_NEGATIVE:
        return "is below 0" if name in MAY_BE_ZERO else _at_least_one(number)
    if number == 0 and name not in MAY_BE_ZERO | MAY_BE_NEGATIVE:
        return _at_least_one(number)
    return _above_the_most(name, number)


def _above_the_most(name: str, number: int | float) -> str | None:
    if name in BELOW_ONE and number >= 1:
        return "is 1 or more. Give a number from 0 up to, but not, 1"
    if name in AT_MOST_ONE and number > 1:
        return "is above 1. Give a share, 0-1"
    if name.endswith(("_eps", "_epsilon")) and number >= EPSILONS:
        return "is 1 or more, which is no small number to add. Give one such as 1e-8"
    if isinstance(number, float) and (0 < abs(number) < LEAST or abs(number) > MOST_OF_FLOATS):
        return f"is not between {LEAST:g} and {MOST_OF_FLOATS:g}, as 32 bits can compute with"
    if name in LARGE_RATES and number > LARGE_RATES[name]:
        return f"is above {LARGE_RATES[name]:g}, beyond which nothing learns"
    most = MOST.get(name, MOST_OF_ELEMENTS if name in LARGE else MOST_OF_ANY)
    if isinstance(number, int) and number > most:
        return f"is above {most:,}, the most that can be"
    return None


_LAYER_LISTS = ("moe_layer_freq", "linear_attention_freq", "no_rope_freq", "window_attn_skip_freq")


def _at_least_one(number: int | float) -> str:
    return "is below 1" if isinstance(number, int) else "is not above 0"


def _shape_problems(values: argparse.Namespace, given: Collection[str | None]) -> list[str]:
    """List numbers of the model that must divide each other, or must not be given alone."""
    problems = []
    heads, groups = values.num_attention_heads, values.num_query_groups
    if values.group_query_attention and heads and groups and groups > 0 and heads % groups:
        problems.append(
            f"num-query-groups: {groups} does not divide num-attention-heads {heads}. Every group "
            "of queries has the same number of heads"
        )
    if "num_query_groups" in given and not values.group_query_attention:
        problems.append(
            f"num-query-groups: {groups} without group-query-attention, so every head would have "
            "keys and values of its own. Set group-query-attention to true, or remove the key"
        )
    if values.kv_channels is None and heads and heads > 0 and (values.hidden_size or 0) % heads:
        problems.append(
            f"num-attention-heads: {heads} does not divide hidden-size {values.hidden_size}. Give "
            "kv-channels, the size of a head, or another number"
        )
    experts, chosen = values.num_experts, values.moe_router_topk
    if experts and experts > 0 and chosen > experts:
        problems.append(
            f"moe-router-topk: {chosen} of num-experts {experts} experts. Use {experts} or less"
        )
    rows, vocabulary = values.padded_vocab_size, values.vocab_size
    if rows and vocabulary and 0 < rows < vocabulary:
        problems.append(
            f"padded-vocab-size: {rows} is below vocab-size {vocabulary}. Raise it, or remove the "
            "key"
        )
    problems += _layer_list_problems(values)
    return [*problems, *_position_problems(values)]


def _position_problems(values: argparse.Namespace) -> list[str]:
    heads, size = values.num_attention_heads, values.hidden_size
    channels = values.kv_channels or (size // heads if heads and size and heads > 0 else None)
    rotates = values.position_embedding_type in ("rope", "yarn") or (
        values.use_rotary_position_embeddings
    )
    problems = []
    rotated = int((channels or 0) * values.rotary_percent) if _is_share(values) else 0
    if rotates and channels and _is_share(values) and (rotated < 2 or rotated % 2):
        problems.append(
            f"kv-channels: rotary positions turn pairs, and {rotated} of {channels} channels of a "
            "head are to be turned. Give an even number of them"
        )
    if values.max_position_embeddings and (values.seq_length or 0) > values.max_position_embeddings:
        problems.append(
            f"max-position-embeddings: {values.max_position_embeddings} is below seq-length "
            f"{values.seq_length}. Raise it, or remove the key"
        )
    return problems


def _is_share(values: argparse.Namespace) -> bool:
    return bool(math.isfinite(values.rotary_percent) and 0 < values.rotary_percent <= 1)


def _layer_list_problems(values: argparse.Namespace) -> list[str]:
    """Find lists with an entry for each layer that have another number of entries."""
    return [
        f"{key_of(name)}: the list is of {len(pattern)}, and num-layers is "
        f"{values.num_layers}. Give one entry for each layer"
        for name in _LAYER_LISTS
        if isinstance(pattern := getattr(values, name), list)
        and values.num_layers
        and len(pattern) != values.num_layers
    ]
