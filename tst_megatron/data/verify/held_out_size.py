"""Judge whether the held-out text of a prepared folder is enough to measure a loss on."""

from __future__ import annotations

import math

from tst_megatron.data.manifest import Manifest

COMMON_LENGTHS = (2048, 4096)
"""Latent positions of a sequence, in usual recipes."""
FEW_SEQUENCES = 64
"""Of the shorter of these lengths: one evaluation of a small recipe."""
FEW_DOCUMENTS = 30
"""Below so many, the mean over documents says more of their choice than of the model."""

OPTIONS = {"validation": "held_out_fraction", "test": "test_fraction"}
"""Of `prepare`, by split: the share of documents that it gets."""


def num_sequences(num_tokens: int, num_latent_positions: int) -> int:
    """Return how many sequences an evaluation can read of a split, each with 1 look-ahead token.

    Args:
        num_tokens: of the split.
        num_latent_positions: L, raw tokens per sequence.
    """
    return max(0, num_tokens - 1) // num_latent_positions


def fraction_for(
    manifest: Manifest, name: str, num_wanted: int, num_latent_positions: int
) -> float | None:
    """Return the share of documents that gives a split enough, with a margin for chance.

    Args:
        manifest: of the text as it was prepared, with too little in that split.
        name: of the split, ``validation`` or ``test``.
        num_wanted: sequences that it must hold; it gets ``FEW_DOCUMENTS`` documents too.
        num_latent_positions: L, raw tokens per sequence.

    Returns:
        Rounded up to two digits; None where it would be more than half of the text.
    """
    splits = manifest.splits().values()
    documents, tokens = sum(s.documents for s in splits), sum(s.tokens for s in splits)
    if not documents or not tokens:
        return None
    expected = (num_wanted * num_latent_positions + 1) / (tokens / documents)
    # Documents are held out by chance: two standard deviations of their number on top.
    expected = (1 + math.sqrt(1 + max(expected, FEW_DOCUMENTS))) ** 2
    # The share that gave too little must grow, whatever is expected of it.
    fraction = max(expected / documents, 1.5 * manifest.recipe.get(OPTIONS[name], 0.0))
    digits = 1 - math.floor(math.log10(fraction))
    return None if fraction > 0.5 else math.ceil(fraction * 10**digits) / 10**digits


def held_out_warnings(manifest: Manifest) -> list[str]:
    """Say which held-out split is small, how small, and what holds out enough.

    A shard of a text is not judged: what counts is the text that it is merged to.

    Args:
        manifest: of a folder that `prepare` or `merge` made.
    """
    if "shard" in manifest.recipe or manifest.empty_splits():
        return []
    return [
        _warning(manifest, name)
        for name, split in manifest.splits().items()
        if name != "train"
        and (
            num_sequences(split.tokens, COMMON_LENGTHS[0]) < FEW_SEQUENCES
            or split.documents < FEW_DOCUMENTS
        )
    ]


def _warning(manifest: Manifest, name: str) -> str:
    split, option = manifest.splits()[name], OPTIONS[name]
    holds = " or ".join(
        f"{num_sequences(split.tokens, length):,} of {length:,}" for length in COMMON_LENGTHS
    )
    key = f"--{option.replace('_', '-')}"
    now = manifest.recipe.get(option)
    fraction = fraction_for(manifest, name, FEW_SEQUENCES, COMMON_LENGTHS[0])
    advice = (
        f"Prepare the text into another folder with {key} {fraction:g} (now {now}), which keeps "
        f"about {FEW_SEQUENCES} sequences of {COMMON_LENGTHS[0]:,}, or use more text"
        if fraction
        else f"Half of this text would not hold {FEW_SEQUENCES} sequences of "
        f"{COMMON_LENGTHS[0]:,}: use more text where the {name} loss is to mean something"
    )
    return (
        f"the {name} text is small: {split.documents:,} "
        f"document{'' if split.documents == 1 else 's'} with {split.tokens:,} tokens, which are "
        f"{holds} positions each. Every {name} loss rests on these alone, and `check` refuses an "
        f"evaluation (global-batch-size x eval-iters sequences) that reads more. {advice}"
    )
