"""Count the padding columns of a vocabulary, say what they cost, and find sizes that have none.

Megatron gives each tensor-parallel rank a multiple of ``make-vocab-size-divisible-by`` rows of the
vocabulary's tables. The rows beyond the vocabulary stand for no token, but their columns take part
in the softmax. So the loss of the same weights depends on the layout. Let Z be the sum of the
exponentials of a model's logits: n columns of logit 0 then add log(1 + n / Z) to the loss.

Example: 151,936 tokens, 128 rows on each of 2 ranks: 152,064 rows, 128 of padding. A model whose
log Z is 11 loses 0.002 nats, and one that was trained to log Z = 0 loses 4.86.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

WIDEST = 8
"""The largest tensor-parallel size that should need no padding: the GPUs of a node."""

_LARGEST_DIVISOR = 128
"""Megatron's default. Rows in multiples of a power of two suit the matrix units of GPUs."""

FACTS = "import.json"
"""The file beside an imported checkpoint that keeps what was measured of the model."""


def padded(vocab_size: int, divisor: int, ranks: int) -> int:
    """Return the rows of a table, padding included.

    Args:
        vocab_size: tokens.
        divisor: ``make-vocab-size-divisible-by``.
        ranks: ``tensor-model-parallel-size``.
    """
    return math.ceil(vocab_size / (divisor * ranks)) * divisor * ranks


def padded_vocabulary(vocab_size: int, args: argparse.Namespace) -> int:
    """Return the rows of an embedding, as Megatron's ``calculate_padded_vocab_size`` does.

    Args:
        vocab_size: tokens, which may be more than the tokenizer has.
        args: Megatron's arguments of the layout.
    """
    return padded(vocab_size, args.make_vocab_size_divisible_by, args.tensor_model_parallel_size)


def sizes_without_padding(vocab_size: int) -> list[int]:
    """List the tensor-parallel sizes up to ``WIDEST`` that cut a vocabulary into equal parts."""
    return [ranks for ranks in range(1, WIDEST + 1) if vocab_size % ranks == 0]


def divisor_without_padding(vocab_size: int, ranks: int = 1) -> int:
    """Find the ``make-vocab-size-divisible-by`` that pads nothing in any layout that allows it.

    Args:
        vocab_size: tokens.
        ranks: a tensor-parallel size that matters beside those up to ``WIDEST``.

    Returns:
        The largest power of two, up to Megatron's default of 128.
    """
    sizes = [*sizes_without_padding(vocab_size), *([] if vocab_size % ranks else [ranks])]
    divisor = _LARGEST_DIVISOR
    while any(vocab_size % (divisor * size) for size in sizes):
        divisor //= 2
    return divisor


def cost(num_columns: int, log_sum_exp: float) -> float:
    """Return what padding columns of logit 0 add to a loss, in nats.

    Args:
        num_columns: of padding.
        log_sum_exp: log Z of the model over its tokens.
    """
    return math.log1p(num_columns * math.exp(-log_sum_exp))


def warning(
    vocab_size: int,
    *,
    rows: int,
    divisor: int,
    ranks: int,
    pretrained: Path | None = None,
) -> str | None:
    """Write the warning for the owner of a run that has padding; None for a run without.

    Args:
        vocab_size: tokens.
        rows: of the tables.
        divisor: ``make-vocab-size-divisible-by``.
        ranks: ``tensor-model-parallel-size``.
        pretrained: the checkpoint that the run starts from; None for a new model.
    """
    num_columns = rows - vocab_size
    if num_columns <= 0:
        return None
    if rows == padded(vocab_size, divisor, ranks):
        what = (
            f"make-vocab-size-divisible-by: {divisor} x tensor-model-parallel-size {ranks} pads "
            f"the vocabulary of {vocab_size:,} to {rows:,} rows"
        )
    else:
        what = f"padded-vocab-size: {rows:,} is more than the vocabulary of {vocab_size:,}"
    return (
        f"{what}. {num_columns:,} columns stand for no token, and take probability: "
        f"{_cost_in_words(num_columns, vocab_size, pretrained)}. "
        f"{_remedy(vocab_size, ranks, is_new=pretrained is None)}"
    )


def _cost_in_words(num_columns: int, vocab_size: int, pretrained: Path | None) -> str:
    if pretrained is None:
        added = cost(num_columns, math.log(vocab_size))
        return (
            f"the loss starts about {added:.2g} higher (log(1 + {num_columns}/{vocab_size})), "
            "until the model has learned to avoid them"
        )
    known = known_log_sum_exp(pretrained)
    if known is None:
        return (
            f"the loss of {pretrained} is higher by log(1 + {num_columns}/Z), Z being the sum of "
            f"the exponentials of its logits, which is not known: {cost(num_columns, 0.0):.2g} for "
            f"a model with log Z = 0, as a z-loss makes it, {cost(num_columns, 10.0):.2g} for one "
            "with 10"
        )
    return (
        f"the loss of {pretrained}, whose mean log Z is {known:.2f}, is about "
        f"{cost(num_columns, known):.2g} higher than it is without them (log(1 + {num_columns}/Z))"
    )


def _remedy(vocab_size: int, ranks: int, *, is_new: bool) -> str:
    sizes = ", ".join(str(size) for size in sizes_without_padding(vocab_size))
    divisor = divisor_without_padding(vocab_size, ranks)
    if vocab_size % ranks == 0:
        others = f", and at every other size up to {WIDEST} that can have none ({sizes})"
        return (
            f"make-vocab-size-divisible-by: {divisor} gives none at tensor-model-parallel-size "
            f"{ranks}{others}"
        )
    fewest = padded(vocab_size, 1, ranks)
    remedy = (
        f"{vocab_size:,} tokens do not divide by {ranks}, so no divisor gives none; 1 gives the "
        f"fewest, {fewest - vocab_size}. Tensor-parallel sizes up to {WIDEST} that need none: "
        f"{sizes}, with make-vocab-size-divisible-by: {divisor}"
    )
    if is_new:
        remedy += f". A new model may have vocab-size: {fewest}, the same in every layout"
    return remedy


def write_facts(folder: Path, *, vocab_size: int, log_sum_exp: float) -> None:
    """Record what was measured of an imported model.

    Args:
        folder: of the import.
        vocab_size: tokens.
        log_sum_exp: the mean of log Z over the positions of the proof.
    """
    facts = {"vocab-size": vocab_size, "mean-log-sum-exp": log_sum_exp}
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def known_log_sum_exp(folder: Path) -> float | None:
    """Return the mean log Z of an imported model; None if it was not measured or not kept.

    Args:
        folder: the one that a recipe names as ``pretrained-checkpoint``.
    """
    try:
        measured = json.loads((folder / FACTS).read_text())["mean-log-sum-exp"]
    except (OSError, ValueError, KeyError, TypeError):
        # Only a figure of a warning: without it the warning says the rule alone.
        return None
    is_number = isinstance(measured, int | float) and not isinstance(measured, bool)
    return float(measured) if is_number and math.isfinite(measured) else None
