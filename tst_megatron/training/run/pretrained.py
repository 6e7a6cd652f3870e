"""Check the weights that a new run starts from: an imported model, or one trained before."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint import saved_state
from tst_megatron.checkpoint.folder import TRACKER, find_checkpoint
from tst_megatron.checkpoint.reader.missing_weights import missing_weights
from tst_megatron.checkpoint.whole import problems
from tst_megatron.hf.families.known import family_of_args
from tst_megatron.hf.families.qwen3_moe import expert_layers

KEY = "pretrained-checkpoint"

# What is computed from the weights, beside what makes a family. Of their sizes, what does not show
# in the shape of a tensor.
_SETTINGS = (
    "num_layers",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "untie_embeddings_and_output_weights",
    "vocab_size",
    "layernorm_epsilon",
    "rotary_base",
    "use_rope_scaling",
    "rope_scaling_factor",
    "num_experts",
    "moe_router_topk",
    "moe_router_pre_softmax",
    "moe_mlp_glu_interleave_size",
)


def pretrained_problems(args: argparse.Namespace) -> list[str]:
    """List why the weights that a recipe names cannot start its run, a sentence each.

    Args:
        args: Megatron's arguments, validated; ``pretrained_checkpoint`` is set.
    """
    folder = Path(args.pretrained_checkpoint)
    try:
        if folder.is_dir() and not (folder / TRACKER).is_file():
            raise ValueError(
                f"{folder}: has no {TRACKER}, by which Megatron finds the checkpoint. Give a "
                "folder that `tst-megatron import` wrote, or the checkpoints/ of a run"
            )
        checkpoint = find_checkpoint(folder)
        if found := problems(checkpoint):
            raise ValueError(f"{checkpoint} is not whole ({'; '.join(found)}). Make it again")
        state = saved_state.read(checkpoint, advice="make it again")
    except ValueError as error:
        return [f"{KEY}: {str(error).removesuffix('.')}"]
    theirs, ours = _settings(state["args"]), _settings(args)
    differing = [
        f"{name.replace('_', '-')}: {theirs.get(name)!r} in {checkpoint}, whose weights this run "
        f"is to start from, and {ours.get(name)!r} in the recipe. Make them the same, or remove "
        f"{KEY}"
        for name in dict.fromkeys([*theirs, *ours])
        if theirs.get(name) != ours.get(name)
    ]
    # A model of another shape would lack too much to name.
    return differing or [
        f"{KEY}: {checkpoint}: {problem}. Make the checkpoint again"
        for problem in missing_weights(checkpoint, args, state.get("content_metadata"))
    ]


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides the meaning of weights; settings that a checkpoint lacks are neutral."""
    names = (*_SETTINGS, *family_of_args(args).settings())
    settings = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if not settings.get("use_rope_scaling"):
        settings.pop("rope_scaling_factor", None)
    if settings.get("num_experts"):
        # However it is spelled, for a message that names layers.
        settings["moe_layer_freq"] = expert_layers(args)
    return settings
