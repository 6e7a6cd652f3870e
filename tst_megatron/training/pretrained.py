"""Starting a run from the weights of another model: an imported one, or one trained before."""

from __future__ import annotations

import argparse
from pathlib import Path

from tst_megatron.hf.checkpoint import find_checkpoint
from tst_megatron.training.checkpoints import TRACKER, problems
from tst_megatron.training.resharding import destination

KEY = "pretrained-checkpoint"

# What the weights are and what is computed from them. How many rows the embedding is padded to may
# differ: Megatron fills the rest with zeros.
_MODEL_KEYS = (
    "num-layers",
    "hidden-size",
    "num-attention-heads",
    "num-query-groups",
    "kv-channels",
    "ffn-hidden-size",
    "qk-layernorm",
    "swiglu",
    "normalization",
    "untie-embeddings-and-output-weights",
    "vocab-size",
    "position-embedding-type",
    "rotary-base",
    "use-rope-scaling",
    "num-experts",
    "moe-ffn-hidden-size",
    "moe-layer-freq",
    "moe-router-topk",
    "moe-router-pre-softmax",
    "add-bias-linear",
    "layernorm-epsilon",
)


def pretrained_problems(args: argparse.Namespace) -> list[str]:
    """Why the weights that a recipe names cannot start its run, a sentence each.

    Args:
        args: Megatron's arguments, validated; ``pretrained_checkpoint`` is set.
    """
    from tst_megatron.upstream.checkpoint import read_saved_state

    folder = Path(args.pretrained_checkpoint)
    try:
        if folder.is_dir() and not (folder / TRACKER).is_file():
            raise ValueError(
                f"{folder}: has no {TRACKER}, by which Megatron finds the checkpoint. Give a "
                "folder that `tst-megatron import` wrote, or the checkpoints/ of a run"
            )
        checkpoint = find_checkpoint(folder)
    except ValueError as error:
        return [f"{KEY}: {str(error).removesuffix('.')}"]
    if found := problems(checkpoint):
        return [f"{KEY}: {checkpoint} is not whole ({'; '.join(found)}). Make it again"]
    saved = read_saved_state(checkpoint)["args"]
    names = {key: destination(key) for key in _MODEL_KEYS}
    pairs = {
        key: (getattr(saved, name, None), getattr(args, name, None)) for key, name in names.items()
    }
    return [
        f"{key}: {theirs!r} in {checkpoint}, whose weights this run is to start from, and {ours!r} "
        f"in the recipe. Make them the same, or remove {KEY}"
        for key, (theirs, ours) in pairs.items()
        if theirs != ours
    ]
