"""Read a checkpoint's arguments, build its model, and run it, in one process.

The way to Megatron for every command that opens a checkpoint: export, verify, import, parameters.
Building and reading happen in silence, so that callers need not ask for it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker, model_parallel_cuda_manual_seed
from megatron.core.transformer.enums import AttnBackend
from torch import distributed, nn

from tst_megatron.megatron import names
from tst_megatron.megatron.arguments import default_arguments, validate_arguments
from tst_megatron.megatron.distributed_checkpoint.reading import read_checked
from tst_megatron.megatron.distributed_checkpoint.weights import SavedWeights
from tst_megatron.megatron.distributed_checkpoint.writing import write_checkpoint
from tst_megatron.megatron.repairs.gpt_config import gpt_config_from_args
from tst_megatron.megatron.silence import in_silence

# A process that imports this opens checkpoints. Nothing in them may run, and nobody has to ask.
read_checked()

__all__ = [
    "SavedWeights",
    "build_gpt",
    "build_gpt_on_meta",
    "default_arguments",
    "logits",
    "name_norms_as_transformer_engine",
    "pending_rerun",
    "read_saved_state",
    "sharded_weights",
    "start_alone",
    "unfused_attention",
    "validate_arguments",
    "write_checkpoint",
]


def start_alone(backend: str = "gloo") -> None:
    """Make this process a Megatron job of one rank; a second call changes nothing.

    Args:
        backend: of the process group: gloo for tensors of a CPU, nccl for those of a GPU.

    Raises:
        RuntimeError: this process is one rank of a larger job.
    """
    if not distributed.is_initialized():
        # A store in memory: no port to find, nothing to collide with.
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    if distributed.get_world_size() != 1:
        raise RuntimeError(
            f"A checkpoint is read by one process, but this one belongs to a job of "
            f"{distributed.get_world_size()}. Read it in a process of its own."
        )
    if not names.parallel_state.model_parallel_is_initialized():
        names.parallel_state.initialize_model_parallel()
    if not get_cuda_rng_tracker().is_initialized():
        # Attention forks this generator for its dropout, also when the dropout is 0.
        with torch.random.fork_rng(devices=[]):
            model_parallel_cuda_manual_seed(1)


def unfused_attention() -> Any:
    """Return the attention backend that needs neither Transformer Engine nor CUDA."""
    return AttnBackend.unfused


def read_saved_state(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint holds beside its tensors: arguments, iteration, content metadata."""
    with in_silence():
        state: dict[str, Any] = dist_checkpointing.load_common_state_dict(str(folder))
    return state


def pending_rerun(state: Mapping[str, Any]) -> str | None:
    """Say what the rerun state machine is to compute again from a checkpoint; None if nothing.

    Args:
        state: as ``read_saved_state`` read it.
    """
    machine = state.get("rerun_state_machine")
    if not machine or machine["state"].name == "NOT_RUNNING_YET":
        return None
    return f"compute step {machine['current_iteration'] + 1} again on another node"


def build_gpt(args: argparse.Namespace) -> nn.Module:
    """Build ``GPTModel`` from arguments, its weights not initialised."""
    with in_silence():
        config = gpt_config_from_args(args)
        config.finalize()
        groups = ProcessGroupCollection.use_mpu_process_groups()
        model: nn.Module = names.GPTModelBuilder(config).build_model(groups)
    return model


def build_gpt_on_meta(args: argparse.Namespace) -> nn.Module:
    """Build ``GPTModel`` from arguments on torch's meta device: names and shapes, no memory.

    Raises:
        RuntimeError: a parameter got memory.
    """
    ours = copy.copy(args)
    # With these Megatron names no device for weights, so the device of the context is taken.
    ours.use_cpu_initialization, ours.perform_initialization = True, False
    with torch.device("meta"):
        model = build_gpt(ours)
    if real := [name for name, value in model.named_parameters() if not value.is_meta]:
        raise RuntimeError(f"{real[0]} and {len(real) - 1} more parameters are not on meta")
    return model


def name_norms_as_transformer_engine(model: Any) -> None:
    """Let the norm before the experts have the name that Transformer Engine's layers save it under.

    The local layers save it as a part of the linear layer that follows, whatever that layer is.
    Transformer Engine fuses the two in dense layers alone and keeps ``pre_mlp_layernorm`` in MoE
    layers. Remove when the local specification tells them apart.
    """
    for layer in model.decoder.layers:
        if hasattr(layer.mlp, "router"):
            names_of = copy.copy(layer.submodules_config)
            names_of.sharded_state_dict_keys_map = {
                key: value
                for key, value in names_of.sharded_state_dict_keys_map.items()
                if key != "pre_mlp_layernorm."
            }
            layer.submodules_config = names_of


def sharded_weights(model: Any, content_metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the model's weights as a distributed checkpoint names and cuts them.

    Args:
        model: a ``GPTModel``.
        content_metadata: the checkpoint's description of its own layout.
    """
    groups = names.parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {**(content_metadata or {}), "dp_cp_group": groups}
    with in_silence():
        weights: dict[str, Any] = model.sharded_state_dict(metadata=metadata)
    return weights


def logits(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Compute next-token logits [B, T, V], padded vocabulary included, of tokens [B, T]."""
    positions_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    result: torch.Tensor = model(tokens_BT, positions_BT, None)
    return result
