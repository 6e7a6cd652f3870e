"""Ask Megatron to validate a recipe: its arguments, or its complaint in a sentence."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Sequence

from tst_megatron.data.manifest import Manifest
from tst_megatron.recipe.padding import padded_vocabulary
from tst_megatron.recipe.recipe import RecipeError


def ask_megatron(flags: Sequence[str], world_size: int) -> argparse.Namespace:
    """Let Megatron validate a recipe that passed our own checks; it stops at its first complaint.

    Raises:
        RecipeError: with that complaint.
    """
    # Importing Megatron takes seconds; a recipe that fails the checks before this needs none of it.
    from tst_megatron.megatron import arguments

    try:
        args = arguments.validate_arguments(flags, world_size=world_size)
        arguments.validate_configurations(args)
    except (Exception, SystemExit) as error:
        # Validation reads files and divides by what it is given, so it may raise anything; after
        # some of its complaints it ends the process.
        raise RecipeError([f"Megatron refuses the recipe: {reason_of(error)}"]) from error
    return args


def reason_of(error: BaseException) -> str:
    """Say in a line why an error was raised.

    Many of Megatron's assertions have no message. Their line of source is shown instead.
    """
    said = " ".join(str(error).split())
    if isinstance(error, KeyError | AttributeError | TypeError | ZeroDivisionError | SystemExit):
        said = f"{type(error).__name__}: {said}"
    if said:
        return said
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.line]
    return lines[-1] if lines else type(error).__name__


NO_TOKENIZER = 32_000
"""Vocabulary size if neither the recipe nor a text says one."""


def fixed_flags(values: argparse.Namespace, manifest: Manifest | None) -> list[str]:
    """Return the flags that the training loop of this project needs under every recipe.

    Args:
        values: what the recipe's keys came to.
        manifest: of the text; None for a recipe that is checked without it.
    """
    flags = ["--dataloader-type", "single"]
    if manifest is None:
        flags += ["--tokenizer-type", "NullTokenizer"]
        vocab_size = values.vocab_size or NO_TOKENIZER
    else:
        flags += ["--tokenizer-type", f"{manifest.tokenizer.kind}Tokenizer"]
        flags += ["--tokenizer-model", str(manifest.tokenizer_path)]
        vocab_size = values.vocab_size or manifest.tokenizer.vocab_size
    if values.vocab_size is None:
        flags += ["--vocab-size", str(vocab_size)]
    if values.padded_vocab_size is None:
        # Megatron would give the model the tokenizer's rows, whatever the vocab-size.
        flags += ["--padded-vocab-size", str(padded_vocabulary(vocab_size, values))]
    if values.max_position_embeddings is None:
        flags += ["--max-position-embeddings", str(values.seq_length)]
    if not values.exit_duration_in_mins:
        # Ten years. Ranks agree on a stop by Megatron's timed exit, so it must be on.
        flags += ["--exit-duration-in-mins", "5256000"]
    # Each step is recorded from what Megatron writes to TensorBoard.
    flags += ["--tensorboard-log-interval", "1"]
    # Bags have no token-level mask, and causal attention needs none.
    return [*flags, "--no-create-attention-mask-in-dataloader"]
