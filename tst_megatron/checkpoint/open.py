"""Read a Megatron checkpoint from its folder alone, in one process, without a GPU.

Shapes come from the arguments saved in the checkpoint. The model is built as Megatron builds it
from those arguments, except that what only says how and where to run (parallel sizes, precision
recipes, fused kernels, overlaps) is set back: any checkpoint then loads into one CPU process, whole
(``load_model``) or a weight at a time (``TrainedWeights``).
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tst_megatron.checkpoint import saved_state
from tst_megatron.checkpoint.one_process import for_one_process
from tst_megatron.checkpoint.seam import seam
from tst_megatron.checkpoint.whole import TRACKER, WHAT_TO_GIVE, problems
from tst_megatron.hf.families.known import not_gpt, scattered_gates
from tst_megatron.system.records import Damaged, read_text

RELEASE = "release"
"""Megatron's name, for folder and tracker, of a checkpoint that is of no step: an imported one."""

_SIZES = ("num_layers", "hidden_size", "num_attention_heads", "kv_channels", "padded_vocab_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One checkpoint, opened: what it says of itself, none of its weights."""

    folder: Path
    """The ``iter_`` folder, or ``release``."""
    args: argparse.Namespace
    """Megatron's arguments as the checkpoint saved them, the run's parallel sizes included."""
    iteration: int
    """Optimizer steps behind the weights."""
    content_metadata: dict[str, Any] | None
    """What the checkpoint says about its own layout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A trained model and where it comes from."""

    args: argparse.Namespace
    """Megatron's arguments as the checkpoint saved them, the run's parallel sizes included."""
    model: nn.Module
    """``GPTModel`` on the CPU, in evaluation mode, every parallel size 1."""
    iteration: int
    """Optimizer steps behind the weights."""


def open_checkpoint(checkpoint: Path, *, iteration: int | None = None) -> Checkpoint:
    """Find a checkpoint and read what it says of itself.

    Args:
        checkpoint: a run folder, a folder of checkpoints with Megatron's tracker file, or one
            ``iter_`` folder.
        iteration: which checkpoint of the folder, in optimizer steps; the tracker's when not given.

    Raises:
        ValueError: there is no such checkpoint, it is incomplete, or its model is not a GPT.
    """
    folder = find_checkpoint(checkpoint, iteration)
    if found := problems(folder):
        raise ValueError(
            f"{folder}: not a whole torch_dist checkpoint ({'; '.join(found)}). If its save was "
            "cut off, name another with --iteration; checkpoints in another format than "
            "`ckpt-format: torch_dist` are not read."
        )
    seam()
    state = saved_state.read(folder, advice="export another iteration")
    if "iteration" not in state:
        raise ValueError(
            f"{folder}: holds no arguments, so the model's shapes are unknown. "
            "Give a checkpoint saved by Megatron's training loop."
        )
    _check_is_gpt(folder, state["args"])
    return Checkpoint(
        folder=folder,
        args=state["args"],
        iteration=int(state["iteration"]),
        content_metadata=state.get("content_metadata"),
    )


class TrainedWeights:
    """The weights of a checkpoint, one at a time: no more than one is in memory."""

    def __init__(self, opened: Checkpoint) -> None:
        """Compare what is stored with what the model needs; nothing is loaded.

        Raises:
            ValueError: a weight is missing, has another shape, or is not all there.
        """
        self.opened = opened
        self._interleave = getattr(opened.args, "moe_mlp_glu_interleave_size", None)
        weights = weights_of(opened.args, opened.content_metadata)
        self._saved = seam().SavedWeights(opened.folder, weights)
        if found := self._saved.problems():
            raise ValueError(
                f"{opened.folder}: its weights are not those of its arguments: "
                f"{'; '.join(found)}. Was it saved by another model class, or only in part?"
            )

    def names(self) -> list[str]:
        """Every weight, by its name in Megatron."""
        names: list[str] = self._saved.names()
        return names

    def read(self, name: str) -> Tensor:
        """One weight in the type that it was saved in, its gates in the order of other models.

        Args:
            name: one of ``names()``.

        Raises:
            ValueError: its bytes cannot be read.
        """
        weight: Tensor = self._saved.read(name)
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
    megatron, opened = seam(), weights.opened
    model = megatron.build_gpt(for_one_process(opened.args, dtype or opened.args.params_dtype))
    # Norms are built in float32 here whatever the type of the rest.
    model = model.to(dtype or opened.args.params_dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.read(name))
    return LoadedModel(args=opened.args, model=model.eval(), iteration=opened.iteration)


def skeleton(
    args: argparse.Namespace, content_metadata: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """How a checkpoint names and cuts the weights of a model, from its arguments alone.

    Args:
        args: Megatron's arguments as saved in a checkpoint.
        content_metadata: what the checkpoint says about its own layout.

    Returns:
        Each weight as the local layers save it, and, where Transformer Engine's layers save it
        under another name, the first name -> the second.
    """
    megatron = seam()
    model = megatron.build_gpt_on_meta(for_one_process(args, args.params_dtype))
    local: dict[str, Any] = megatron.sharded_weights(model, content_metadata)
    megatron.name_norms_as_transformer_engine(model)
    with_te = megatron.sharded_weights(model, content_metadata)
    aliases = {
        entry.key: with_te[name].key
        for name, entry in local.items()
        if entry.key != with_te[name].key
    }
    return local, aliases


def weights_of(args: argparse.Namespace, content_metadata: dict[str, Any] | None) -> dict[str, Any]:
    """How the layers that a model was or is trained with save its weights.

    Args:
        args: as for ``skeleton``.
        content_metadata: as for ``skeleton``.
    """
    weights, aliases = skeleton(args, content_metadata)
    if args.transformer_impl != "local":
        for entry in weights.values():
            entry.key = aliases.get(entry.key, entry.key)
    return weights


def find_checkpoint(checkpoint: Path, iteration: int | None = None) -> Path:
    """The folder that a path and an iteration stand for.

    Args:
        checkpoint: a run folder, a folder of checkpoints with Megatron's tracker file, or one
            ``iter_`` folder.
        iteration: in optimizer steps; the tracker's when not given.

    Raises:
        ValueError: there is no such checkpoint; the message lists those that exist.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: no such folder. {WHAT_TO_GIVE}")
    own = _iteration_of(checkpoint)
    if own is not None and iteration in (None, own):
        return checkpoint
    if own is not None:
        raise ValueError(
            f"{checkpoint} is the checkpoint of iteration {own}, but iteration {iteration} was "
            f"asked for. Give {checkpoint.parent} instead, or leave --iteration out."
        )
    existing = sorted(
        number for path in checkpoint.iterdir() if (number := _iteration_of(path)) is not None
    )
    if not existing and (checkpoint / "checkpoints").is_dir():
        return find_checkpoint(checkpoint / "checkpoints", iteration)
    if not existing:
        raise ValueError(
            f"{checkpoint}: no checkpoint there (no iter_NNNNNNN folder). {WHAT_TO_GIVE}"
        )
    wanted = _tracked(checkpoint, existing) if iteration is None else iteration
    if wanted not in existing:
        raise ValueError(
            f"{checkpoint}: no checkpoint of iteration {wanted}. "
            f"Iterations there: {_listed(existing)}."
        )
    # An imported checkpoint is of no step, and of step 0 where a number is asked for.
    step = checkpoint / f"iter_{wanted:07d}"
    return step if step.is_dir() else checkpoint / RELEASE


def _tracked(checkpoint: Path, existing: list[int]) -> int:
    tracker = checkpoint / TRACKER
    try:
        text = (read_text(tracker) or "").strip()
    except Damaged as error:
        raise ValueError(
            f"{tracker}: {error}. Name an iteration; those there: {_listed(existing)}."
        ) from error
    if text == RELEASE and (checkpoint / RELEASE).is_dir():
        return 0
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ValueError(
            f"{tracker}: must hold the newest iteration as a number, but "
            f"{f'holds {text!r}' if tracker.is_file() else 'does not exist'}. "
            f"Name an iteration; those there: {_listed(existing)}."
        )
    return int(text)


def _iteration_of(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    match = re.fullmatch(r"iter_(\d{7,})", folder.resolve().name)
    if match:
        return int(match[1])
    # A run may be called so too.
    is_import = folder.resolve().name == RELEASE and (folder / ".metadata").exists()
    return 0 if is_import else None


def _listed(iterations: list[int]) -> str:
    return ", ".join(str(iteration) for iteration in iterations)


def _check_is_gpt(folder: Path, args: argparse.Namespace) -> None:
    found = not_gpt(args)
    found += [f"{name} is missing" for name in _SIZES if getattr(args, name, None) is None]
    if found:
        raise ValueError(
            f"{folder}: not a GPT model of uniform layers: {'; '.join(found)}. "
            "Only checkpoints of Megatron's GPTModel are supported."
        )
    if found := scattered_gates(args):
        raise ValueError(
            f"{folder}: {'; '.join(found)}. Save it again with expert-tensor-parallel-size 1."
        )


def separate_gates(weight: Tensor, interleave_size: int) -> Tensor:
    """Put the rows of an interleaved ``linear_fc1`` in the order gate rows, then up rows.

    Args:
        weight: [2F, H], blocks of ``interleave_size`` gate rows and up rows in turn.
        interleave_size: rows in a block.

    Source: ``TEGroupedMLP._remove_glu_interleaving``, which does the same to its outputs.
    """
    blocks = weight.reshape(-1, 2, interleave_size, weight.shape[1])
    return blocks.transpose(0, 1).reshape(weight.shape)
