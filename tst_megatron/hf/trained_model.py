"""Open a trained model once: its checkpoint, its family, its tokenizer and its weights.

An export hands this one object on, so that nothing after it looks for the checkpoint again: a run
that is still training may have moved its tracker by then.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tst_megatron.checkpoint.reader.open import Checkpoint, open_checkpoint
from tst_megatron.checkpoint.reader.weights import TrainedWeights
from tst_megatron.hf.families.family import Family
from tst_megatron.hf.families.known import family_of_args, not_gpt, scattered_gates
from tst_megatron.hf.tokenizer.files import NO_TOKENIZER, TokenizerFiles, find_tokenizer

_SIZES = ("num_layers", "hidden_size", "num_attention_heads", "kv_channels", "padded_vocab_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A checkpoint on its way to Hugging Face format, opened; none of its weights is in memory."""

    checkpoint: Checkpoint
    """Its folder, its iteration and Megatron's arguments."""
    family: Family
    """The Hugging Face family that can express it."""
    tokenizer: TokenizerFiles
    """The tokenizer that it was trained with, as far as its files are on this machine."""
    weights: TrainedWeights
    """Reads one weight at a time."""

    @property
    def args(self) -> argparse.Namespace:
        """Megatron's arguments as the checkpoint saved them."""
        return self.checkpoint.args


def open_trained_model(
    checkpoint: Path,
    *,
    iteration: int | None = None,
    tokenizer: Path | None = None,
    with_tokenizer: bool = True,
) -> TrainedModel:
    """Open a checkpoint for an export; refuse one that cannot be exported, cheapest reason first.

    Args:
        checkpoint: a run folder, a folder of Megatron checkpoints, or one ``iter_`` folder.
        iteration: which checkpoint, in optimizer steps; the newest when not given.
        tokenizer: its file or folder, where the checkpoint's own is not to be used.
        with_tokenizer: also find the tokenizer's files.

    Raises:
        ValueError: no such checkpoint or tokenizer, no form in a known family, or weights that are
            not those of the saved arguments.
    """
    # 1. What the checkpoint says of itself.
    opened = open_gpt(checkpoint, iteration=iteration)
    # 2. The family, from the arguments alone.
    family = family_of_args(opened.args)
    family.check(opened.args)
    # 3. The tokenizer, beside the checkpoint or where the arguments name it.
    found = NO_TOKENIZER
    if with_tokenizer:
        found = find_tokenizer(opened.args, opened.folder.parent, tokenizer)
    # 4. The weights: their names and shapes, which takes Megatron's model on the meta device.
    weights = TrainedWeights(opened)
    return TrainedModel(checkpoint=opened, family=family, tokenizer=found, weights=weights)


def open_gpt(checkpoint: Path, *, iteration: int | None = None) -> Checkpoint:
    """Open a checkpoint of one of Megatron's GPT models with uniform layers.

    Args:
        checkpoint: as for ``open_checkpoint``.
        iteration: as for ``open_checkpoint``.

    Raises:
        ValueError: as ``open_checkpoint`` does, or its model is another one.
    """
    opened = open_checkpoint(checkpoint, iteration=iteration)
    args, folder = opened.args, opened.folder
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
    return opened
