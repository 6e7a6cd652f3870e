"""Point out splits of a prepared folder whose share of the documents is not the one asked for."""

from __future__ import annotations

import math

from tst_megatron.data.manifest import Manifest
from tst_megatron.data.text.inputs import Shard

IMPROBABLE = 1e-6
"""A split whose size is less probable than this is pointed out."""


def share_notes(manifest: Manifest) -> list[str]:
    """List splits that are empty, or whose share of the documents is not what the fractions give.

    This is not a fault: texts that occur many times all fall into the same split.
    """
    documents = {name: split.documents for name, split in manifest.splits().items()}
    total = sum(documents.values())
    notes = [
        f"{name} has no document: the folder is to be merged with others."
        for name in manifest.empty_splits()
    ]
    if record := manifest.recipe.get("shard"):
        notes.append(f"this is shard {Shard.recorded(record)} of a text, to merge.")
    for name, key in (("validation", "held_out_fraction"), ("test", "test_fraction")):
        fraction = manifest.recipe.get(key)
        if name not in documents or not isinstance(fraction, float) or not 0 < fraction < 1:
            continue
        if _is_improbable(documents[name], total, fraction):
            notes.append(
                f"{name} has {documents[name]:,} of {total:,} documents, "
                f"{key} {fraction:g} gives about {total * fraction:,.0f}. Some texts may occur "
                "many times."
            )
    return notes


def _is_improbable(number: int, total: int, fraction: float) -> bool:
    """Apply Chernoff's bound on the tails of the binomial distribution; it holds for any size."""
    share = number / total if total else fraction
    divergence = sum(
        there * math.log(there / expected)
        for there, expected in ((share, fraction), (1 - share, 1 - fraction))
        if there
    )
    return total * divergence > -math.log(IMPROBABLE)
