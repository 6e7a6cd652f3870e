"""The Llama 3 family: dense, no norms on queries and keys, Llama 3.1's scaling of RoPE."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from tst_megatron.hf.families.family import Family
from tst_megatron.hf.families.weight_table import ATTENTION_IN, ATTENTION_OUT, MLP, Rule, decoder

# Megatron's RotaryEmbedding has these built in; only the factor is an argument.
_SCALING = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _problems(args: argparse.Namespace) -> list[str]:
    hidden_size, heads = args.hidden_size, args.num_attention_heads
    # A recipe that `check` has still to refuse may lack both.
    if hidden_size and heads and hidden_size % heads:
        # Though the size of a head is an entry of its own.
        return [
            f"num-attention-heads is {heads}, which does not divide hidden-size {hidden_size}, as "
            "transformers demands of Llama"
        ]
    return []


def _config(args: argparse.Namespace) -> dict[str, Any]:
    special: dict[str, Any] = {"mlp_bias": False, "pretraining_tp": 1}
    if getattr(args, "use_rope_scaling", False):
        factor = float(args.rope_scaling_factor)
        special["rope_scaling"] = {"rope_type": "llama3", "factor": factor, **_SCALING}
    return special


def _flags(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return {}
    problems += [
        f"{key}={rope.get(key)!r} (Megatron has {value!r})"
        for key, value in _SCALING.items()
        if rope.get(key) != value
    ]
    return {"use-rope-scaling": True, "rope-scaling-factor": float(rope["factor"])}


# --- weights -------------------------------------------------------------------------------------

LAYER = (*ATTENTION_IN, *ATTENTION_OUT, *MLP)


def _rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    return decoder(config, lambda layer: iter(LAYER))


LLAMA = Family(
    name="Llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    fixed={"qk_layernorm": (False,)},
    problems=_problems,
    config=_config,
    flags=_flags,
    rules=_rules,
)
