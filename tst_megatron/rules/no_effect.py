"""Keys that Megatron passes over in silence, because another one that they belong to is not set."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

Values = argparse.Namespace

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
    (
        "position-embedding-type: rope",
        lambda values: (
            values.position_embedding_type != "learned_absolute"
            or values.use_rotary_position_embeddings
        ),
        ("rotary_base", "rotary_percent"),
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
"""(what has to be set, whether it is, beginnings of the names that belong to it)."""


def _optimizers(values: Values) -> str:
    """The optimizer, and for Muon the one of vectors and tables."""
    return f"{values.optimizer} {getattr(values, 'muon_scalar_optimizer', '')}"


def no_effect_warnings(values: Values, own: Collection[str | None]) -> list[str]:
    """Keys of a recipe's own that nothing of the run will feel.

    Args:
        values: what the recipe's keys came to.
        own: destinations of the keys that the recipe itself has, its profile left out.
    """
    warnings = []
    for needed, is_set, beginnings in BELONGS_TO:
        if is_set(values):
            continue
        idle = sorted(name for name in own if name and name.startswith(beginnings))
        idle = [name for name in idle if _says_something(values, name)]
        if idle:
            keys = ", ".join(name.replace("_", "-") for name in idle)
            verb = "has" if len(idle) == 1 else "have"
            warnings.append(f"{keys}: {verb} no effect without {needed}")
    return warnings


def _says_something(values: Values, name: str) -> bool:
    """Whether a key asks for anything: ``false`` and 0 are what is without it."""
    return bool(getattr(values, name))
