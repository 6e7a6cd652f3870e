"""Build the configuration of a GPT from Megatron's arguments without losing two of them."""

from __future__ import annotations

import argparse
from typing import Any

from tst_megatron.megatron import names


def gpt_config_from_args(args: argparse.Namespace, *, model_config_cls: Any = None) -> Any:
    """Return the configuration of a GPT that validated arguments mean, all of them.

    Megatron's function leaves two behind: ``te-rng-tracker``, without which the configuration
    refuses every CUDA graph, and ``rope-scaling-factor``, without which every model is scaled by 8.
    Remove each line when it takes that one along.
    """
    config = names.gpt_config_from_args(
        args, model_config_cls=model_config_cls or names.GPTModelConfig
    )
    config.transformer.use_te_rng_tracker = args.te_rng_tracker
    config.rope_scaling_factor = args.rope_scaling_factor
    return config
