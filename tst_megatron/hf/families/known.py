"""List the families that can be exported and imported, and find the one of a model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tst_megatron.hf.families.family import Family, recipe_key, shown
from tst_megatron.hf.families.llama import LLAMA
from tst_megatron.hf.families.qwen3 import QWEN3
from tst_megatron.hf.families.qwen3_moe import QWEN3_MOE

FAMILIES = (QWEN3_MOE, QWEN3, LLAMA)

_OTHER_MODELS = (
    "hybrid_layer_pattern",
    "hybrid_override_pattern",
    "is_hybrid_model",
    "heterogeneous_layers_config_path",
    "heterogeneous_layers_config_encoded_json",
    "spec",
    "yaml_cfg",
)
"""Arguments that make another model than a GPT of uniform layers."""


def family_of_args(args: argparse.Namespace) -> Family:
    """Return the nearest family of a trained model; ``Family.check`` says whether it fits.

    Args:
        args: Megatron's arguments as saved in a checkpoint.
    """
    if getattr(args, "num_experts", None):
        return QWEN3_MOE
    return QWEN3 if getattr(args, "qk_layernorm", False) else LLAMA


def family_of_config(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json.

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


def not_gpt(args: argparse.Namespace) -> list[str]:
    """List the settings that make a model none of Megatron's GPT models, the only ones known here.

    Args:
        args: Megatron's arguments: of a recipe, or as saved in a checkpoint.
    """
    return [
        f"{recipe_key(name)} is {shown(value)} (must not be set)"
        for name in _OTHER_MODELS
        if (value := getattr(args, name, None))
    ]


def scattered_gates(args: argparse.Namespace) -> list[str]:
    """List what keeps the gate rows of saved experts from being put in order, if anything does.

    Args:
        args: as for ``not_gpt``.
    """
    interleave_size = getattr(args, "moe_mlp_glu_interleave_size", None)
    if not interleave_size:
        return []
    # Where it is not set, it is the tensor-parallel size; a checkpoint has it set.
    ranks = args.expert_tensor_parallel_size or args.tensor_model_parallel_size
    if ranks <= 1:
        return []
    return [
        f"moe-mlp-glu-interleave-size is {interleave_size} with expert-tensor-parallel-size "
        f"{ranks}: the saved order of gate rows depends on the rank"
    ]
