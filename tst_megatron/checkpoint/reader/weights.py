"""Read the weights of an opened checkpoint, in one CPU process, whatever layout saved them.

Shapes come from the arguments saved in the checkpoint. The model is built as Megatron builds it
from those arguments, except that what only says how and where to run (parallel sizes, precision
recipes, fused kernels, overlaps) is set back (``arguments.py``). So any checkpoint loads into one
CPU process: one weight at a time (``TrainedWeights``), or all of them (``load_model``).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tst_megatron.checkpoint.reader.arguments import for_one_process
from tst_megatron.checkpoint.reader.open import Checkpoint
from tst_megatron.checkpoint.reader.process import in_one_process


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A trained model and where it comes from."""

    args: argparse.Namespace
    """Megatron's arguments as the checkpoint saved them, the run's parallel sizes included."""
    model: nn.Module
    """``GPTModel`` on the CPU, in evaluation mode, every parallel size 1."""
    iteration: int
    """Optimizer steps behind the weights."""


class TrainedWeights:
    """The weights of a checkpoint, one at a time: no more than one is in memory."""

    def __init__(self, opened: Checkpoint) -> None:
        """Compare what is stored with what the model needs; nothing is loaded.

        Raises:
            ValueError: a weight is missing, incomplete, or of another shape.
        """
        self.opened = opened
        self._interleave = getattr(opened.args, "moe_mlp_glu_interleave_size", None)
        weights, _ = skeleton(opened.args, opened.content_metadata)
        in_one_process()
        # Importing Megatron needs the CPU host, which the line before installs.
        from tst_megatron.megatron.distributed_checkpoint.model import SavedWeights

        self._saved = SavedWeights(opened.folder, weights)
        if found := self._saved.problems():
            raise ValueError(
                f"{opened.folder}: its weights are not those of its arguments: "
                f"{'; '.join(found)}. Was it saved by another model class, or only in part?"
            )

    def names(self) -> list[str]:
        """List every weight, by its name in Megatron."""
        return self._saved.names()

    def read(self, name: str) -> Tensor:
        """Return one weight in the type that it was saved in.

        Interleaved gates are put in the order that other models have.

        Args:
            name: one of ``names()``.

        Raises:
            ValueError: its bytes cannot be read.
        """
        weight = self._saved.read(name)
        if self._interleave and ".experts." in name and name.endswith("linear_fc1.weight"):
            return separate_gates(weight, self._interleave)
        return weight


def load_model(weights: TrainedWeights, *, dtype: torch.dtype | None = None) -> LoadedModel:
    """Build the model that a checkpoint was saved from and load its weights; no optimizer state.

    Args:
        weights: of the checkpoint.
        dtype: type of the weights in memory; the type they were trained in when not given.

    Raises:
        ValueError: the bytes of a weight cannot be read.
        RuntimeError: this process cannot be a Megatron job of its own.
    """
    in_one_process()
    # Importing Megatron needs the CPU host, which the line before installs.
    from tst_megatron.megatron.distributed_checkpoint.model import build_gpt

    opened = weights.opened
    model = build_gpt(for_one_process(opened.args, dtype or opened.args.params_dtype))
    # Norms are built in float32 here whatever the type of the rest.
    model = model.to(dtype or opened.args.params_dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.read(name))
    return LoadedModel(args=opened.args, model=model.eval(), iteration=opened.iteration)


def skeleton(
    args: argparse.Namespace, content_metadata: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return how a checkpoint names and cuts the weights of a model, from its arguments alone.

    Args:
        args: Megatron's arguments as saved in a checkpoint.
        content_metadata: what the checkpoint says about its own layout.

    Returns:
        Each weight as the local layers save it, and, where Transformer Engine's layers save it
        under another name, the first name -> the second.
    """
    in_one_process()
    # Importing Megatron needs the CPU host, which the line before installs.
    from tst_megatron.megatron.distributed_checkpoint.model import (
        build_gpt_on_meta,
        name_norms_as_transformer_engine,
        sharded_weights,
    )

    model = build_gpt_on_meta(for_one_process(args, args.params_dtype))
    local = sharded_weights(model, content_metadata)
    name_norms_as_transformer_engine(model)
    with_te = sharded_weights(model, content_metadata)
    aliases = {
        entry.key: with_te[name].key
        for name, entry in local.items()
        if entry.key != with_te[name].key
    }
    return local, aliases


def separate_gates(weight: Tensor, interleave_size: int) -> Tensor:
    """Put the rows of an interleaved ``linear_fc1`` in the order gate rows, then up rows.

    Args:
        weight: [2F, H], blocks of ``interleave_size`` gate rows and up rows in turn.
        interleave_size: rows in a block.

    Source: ``TEGroupedMLP._remove_glu_interleaving``, which does the same to its outputs.
    """
    blocks = weight.reshape(-1, 2, interleave_size, weight.shape[1])
    return blocks.transpose(0, 1).reshape(weight.shape)
