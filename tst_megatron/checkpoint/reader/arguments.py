"""Turn the arguments of a model trained in any layout into those of one CPU process."""

from __future__ import annotations

import argparse
import copy
import functools

import torch

from tst_megatron.checkpoint.reader.process import in_one_process
from tst_megatron.recipe.keys.kinds import LAYOUT_KEYS
from tst_megatron.recipe.keys.run_keys import COMPUTING_KEYS
from tst_megatron.recipe.keys.table import destination_of

# It decides the rows of the vocabulary's tables.
_OF_THE_WEIGHTS = {"make-vocab-size-divisible-by"}
# They change nothing of a run, and a model's configuration takes them.
_TAKEN_BY_A_MODEL = (
    "config-logger-dir",
    "high-priority-stream-groups",
    "moe-per-layer-logging",
    "pipeline-model-parallel-comm-backend",
    "tp-comm-bootstrap-backend",
)


@functools.cache
def execution_arguments() -> frozenset[str]:
    """Return Megatron's arguments that say how to run a model and not what it computes.

    An argument that the table of kinds does not know is not among them, so that a new setting of
    an architecture is never dropped in silence.
    """
    keys = {*LAYOUT_KEYS, *COMPUTING_KEYS, *_TAKEN_BY_A_MODEL} - _OF_THE_WEIGHTS
    return frozenset(destination_of(key) for key in keys)


def for_one_process(args: argparse.Namespace, dtype: torch.dtype) -> argparse.Namespace:
    """Return the same model's arguments for one CPU process.

    Args:
        args: Megatron's arguments as saved in a checkpoint.
        dtype: type of the weights in memory.
    """
    in_one_process()
    # Importing Megatron needs the CPU host, which the line before installs.
    from tst_megatron.megatron.distributed_checkpoint.model import (
        default_arguments,
        unfused_attention,
    )

    ours = copy.copy(args)
    for name, default in vars(default_arguments()).items():
        if not hasattr(ours, name) or name in execution_arguments():
            setattr(ours, name, default)
    # Set by Megatron's validation, not by its parser.
    ours.virtual_pipeline_model_parallel_size = None
    ours.expert_tensor_parallel_size = 1
    ours.params_dtype = dtype
    ours.transformer_impl = "local"
    ours.attention_backend = unfused_attention()
    ours.moe_token_dispatcher_type = "alltoall"
    ours.use_cpu_initialization = True
    ours.perform_initialization = False
    ours.no_persist_layer_norm = True
    for fusion in ("masked_softmax", "bias_dropout", "bias_swiglu", "bias_gelu"):
        setattr(ours, f"{fusion}_fusion", False)
    ours.gradient_accumulation_fusion = ours.apply_rope_fusion = False
    ours.attention_dropout = ours.hidden_dropout = 0.0
    return ours
