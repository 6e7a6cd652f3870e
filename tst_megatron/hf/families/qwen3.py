"""The Qwen3 family: dense, grouped-query attention with norms on queries and keys."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from tst_megatron.hf.families.family import Family, only_full_attention
from tst_megatron.hf.families.weight_table import (
    ATTENTION_IN,
    ATTENTION_OUT,
    MLP,
    Rule,
    Table,
    decoder,
)


def window_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what Qwen3's config.json says of the attention window that these models do not have.

    Args:
        args: Megatron's arguments as saved in a checkpoint.
    """
    return {
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": args.num_layers,
    }


def _flags(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    only_full_attention(config, problems)
    return {"qk-layernorm": True}


# --- weights -------------------------------------------------------------------------------------

_NORMS: Table = tuple(
    Rule(
        f"decoder.layers.{{layer}}.self_attention.{name}_layernorm.weight",
        (f"model.layers.{{layer}}.self_attn.{name}_norm.weight",),
        sizes=(("head",),),
    )
    for name in "qk"
)
ATTENTION: Table = (*ATTENTION_IN, *_NORMS, *ATTENTION_OUT)
LAYER: Table = (*ATTENTION, *MLP)


def _rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    return decoder(config, lambda layer: iter(LAYER))


QWEN3 = Family(
    name="Qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    fixed={"qk_layernorm": (True,), "use_rope_scaling": (False,)},
    problems=lambda args: [],
    config=window_settings,
    flags=_flags,
    rules=_rules,
)
