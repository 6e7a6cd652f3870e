"""Ask for keys that a recipe must set, and warn of dangerous defaults of Megatron's."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.rules.no_effect import is_idle

DANGEROUS_DEFAULTS = {
    "hidden-dropout": "0.1",
    "attention-dropout": "0.1",
    "norm-epsilon": "1e-5; Qwen3 uses 1e-6",
    "rotary-base": "10000; Qwen3 uses 1000000",
    "adam-beta2": "0.999; the paper uses 0.95",
    "weight-decay": "0.01",
    "lr-warmup-iters": "0: no warm-up",
    "min-lr": "0",
    "lr-decay-style": "linear",
    "lr-wsd-decay-style": "exponential",
    "vocab-size": "the tokenizer's own, which pads to another size than the model's card",
}
"""Megatron's defaults that are wrong for pre-training this family, and what they are."""

DANGEROUS_MOE_DEFAULTS = {
    "moe-aux-loss-coeff": "0: experts are not balanced",
    "moe-router-dtype": "none: the router computes in the model's type",
}

NEEDED = (
    "num-layers",
    "hidden-size",
    "num-attention-heads",
    "seq-length",
    "micro-batch-size",
    "global-batch-size",
    "train-iters",
    "lr",
    "save-interval",
    "eval-interval",
)
"""Keys without which there is no model, no step or no checkpoint."""


def default_warnings(
    known: Flags, given: Collection[str | None], values: argparse.Namespace
) -> list[str]:
    """List the dangerous defaults that a recipe does not change."""
    risks = dict(DANGEROUS_DEFAULTS)
    if values.num_experts:
        risks |= DANGEROUS_MOE_DEFAULTS
    if values.lr_warmup_fraction:
        del risks["lr-warmup-iters"]
    return [
        f"{key}: not set, so Megatron's default holds ({default})"
        for key, default in risks.items()
        if (name := known.destination(key)) not in given and not is_idle(values, str(name))
    ]
