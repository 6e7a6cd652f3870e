"""The families that can be exported and imported, and which of them a model belongs to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tst_megatron.hf.family import Family
from tst_megatron.hf.llama import LLAMA
from tst_megatron.hf.qwen3 import QWEN3
from tst_megatron.hf.qwen3_moe import QWEN3_MOE

FAMILIES = (QWEN3_MOE, QWEN3, LLAMA)


def family_of_args(args: argparse.Namespace) -> Family:
    """The family that a trained model belongs to, if any: ``Family.check`` says whether it fits.

    Args:
        args: Megatron's arguments as saved in a checkpoint.
    """
    if getattr(args, "num_experts", None):
        return QWEN3_MOE
    return QWEN3 if getattr(args, "qk_layernorm", False) else LLAMA


def family_of_config(config: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        ValueError: it is none of those known here.
    """
    architectures = config.get("architectures") or [config.get("model_type")]
    model_type = config.get("model_type")
    for family in FAMILIES:
        if architectures in ([family.architecture], [family.model_type]):
            if model_type not in (None, family.model_type):
                break
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise ValueError(
        f"architectures={architectures!r}, model_type={model_type!r}: another architecture than "
        f"{known}, which are those that can be imported and exported."
    )
