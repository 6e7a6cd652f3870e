"""Warn of keys that have no effect, because another key that they belong to is not set.

Megatron ignores such keys in silence. Example: ``moe-router-topk`` without ``num-experts``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

from tst_megatron.recipe.keys.table import key_of

Values = argparse.Namespace


def is_rotary(values: Values) -> bool:
    """Tell whether positions are turned into the queries and keys."""
    turning = ("rope", "yarn", "mrope")
    return bool(
        values.position_embedding_type in turning
        or values.use_rotary_position_embeddings
        or values.multi_latent_attention
    )


BELONGS_TO: tuple[tuple[str, Callable[[Values], bool], tuple[str, ...]], ...] = (
    ("num-experts", lambda values: bool(values.num_experts), ("moe_",)),
    ("optimizer: adam", lambda values: "sgd" not in values.optimizer, ("adam_",)),
    ("optimizer: sgd", lambda values: values.optimizer == "sgd", ("sgd_",)),
    ("optimizer: muon", lambda values: "muon" in values.optimizer, ("muon_",)),
    ("optimizer: lion", lambda values: "lion" in _optimizers(values), ("lion_",)),
    ("lr-decay-style: WSD", lambda values: values.lr_decay_style == "WSD", ("lr_wsd_",)),
    (
        "lr-warmup-iters or lr-warmup-fraction",
        lambda values: bool(values.lr_warmup_iters or values.lr_warmup_fraction),
        ("lr_warmup_init",),
    ),
    (
        "another lr-decay-style than constant",
        lambda values: values.lr_decay_style != "constant",
        ("min_lr", "lr_decay_iters"),
    ),
    ("mtp-num-layers", lambda values: bool(values.mtp_num_layers), ("mtp_loss_scaling_factor",)),
    ("fp8-format", lambda values: bool(values.fp8), ("fp8_",)),
    (
        "multi-latent-attention",
        lambda values: values.multi_latent_attention,
        ("q_lora_", "kv_lora_"),
    ),
    ("use-rope-scaling", lambda values: values.use_rope_scaling, ("rope_scaling_factor",)),
    ("rotary positions (position-embedding-type: rope)", is_rotary, ("rotary_", "rope_")),
    (
        "moe-router-enable-expert-bias",
        lambda values: values.moe_router_enable_expert_bias,
        ("moe_router_bias_update_rate",),
    ),
    (
        "moe-router-group-topk",
        lambda values: bool(values.moe_router_group_topk),
        ("moe_router_num_groups",),
    ),
    (
        "moe-router-num-groups",
        lambda values: bool(values.moe_router_num_groups),
        ("moe_router_group_topk",),
    ),
    (
        "a moe-router-load-balancing-type with an auxiliary loss",
        lambda values: "aux_loss" in str(values.moe_router_load_balancing_type),
        ("moe_aux_loss_coeff",),
    ),
    (
        "moe-shared-expert-intermediate-size",
        lambda values: bool(values.moe_shared_expert_intermediate_size),
        ("moe_shared_expert_gate", "moe_shared_expert_overlap"),
    ),
    (
        "fp8-format or fp4-format",
        lambda values: bool(values.fp8 or values.fp4),
        ("first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"),
    ),
    (
        "multi-latent-attention or position-embedding-type: yarn",
        lambda values: values.multi_latent_attention or values.position_embedding_type == "yarn",
        ("mscale",),
    ),
    (
        "context-parallel-size above 1",
        lambda values: (values.context_parallel_size or 1) > 1,
        ("cp_comm_type",),
    ),
    ("qk-clip", lambda values: bool(values.qk_clip), ("qk_clip_",)),
    ("wandb-project", lambda values: bool(values.wandb_project), ("wandb_",)),
    ("swiglu", lambda values: values.swiglu, ("activation_func_clamp_value",)),
    ("window-size", lambda values: bool(values.window_size), ("window_attn_skip_freq",)),
    ("recompute-granularity", lambda values: bool(values.recompute_granularity), ("recompute_",)),
    (
        "another weight-decay-incr-style than constant",
        lambda values: values.weight_decay_incr_style != "constant",
        ("start_weight_decay", "end_weight_decay"),
    ),
)
"""(what must be set, a test of that, beginnings of the names that belong to it)."""


def _optimizers(values: Values) -> str:
    """Return the optimizer, and with Muon also the one for vectors and tables."""
    return f"{values.optimizer} {getattr(values, 'muon_scalar_optimizer', '')}"


def no_effect_warnings(values: Values, own: Collection[str | None]) -> list[str]:
    """List keys of the recipe itself that have no effect on the run.

    Args:
        values: what the recipe's keys came to.
        own: destinations of the recipe's own keys, without those of its profile.
    """
    warnings = []
    for needed, is_set, beginnings in BELONGS_TO:
        if is_set(values):
            continue
        idle = sorted(name for name in own if name and name.startswith(beginnings))
        idle = [name for name in idle if _says_something(values, name)]
        if idle:
            keys = ", ".join(key_of(name) for name in idle)
            verb = "has" if len(idle) == 1 else "have"
            warnings.append(f"{keys}: {verb} no effect without {needed}")
    return warnings


def is_idle(values: Values, name: str) -> bool:
    """Tell whether an attribute of Megatron's arguments has no effect on a run."""
    return any(
        name.startswith(beginnings) and not is_set(values) for _, is_set, beginnings in BELONGS_TO
    )


def _says_something(values: Values, name: str) -> bool:
    """Tell whether a key asks for anything: ``false`` and 0 ask for nothing."""
    return bool(getattr(values, name))
