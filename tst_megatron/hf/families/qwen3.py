"""Qwen3, dense: grouped-query attention with norms on queries and keys."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tst_megatron.hf.families.family import Family, only_full_attention


def window_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What Qwen3's configurations say of the attention window that these models do not have.

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


QWEN3 = Family(
    name="Qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    fixed={"qk_layernorm": (True,), "use_rope_scaling": (False,)},
    problems=lambda args: [],
    config=window_settings,
    flags=_flags,
)
