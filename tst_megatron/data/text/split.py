"""Decide which split a document belongs to, by its text alone."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "validation", "test")
SPLIT_RULE = (
    "u = blake2b-64(document text) / 2^64: validation if u < held_out_fraction, test if u < "
    "held_out_fraction + test_fraction, else train"
)


def split_of(text: str, *, held_out_fraction: float, test_fraction: float) -> str:
    """Return the split of a document.

    Args:
        text: of the document, all of it.
        held_out_fraction: share of documents (0-1) that go to validation.
        test_fraction: share of documents (0-1) that go to test; what validation holds does not
            depend on it.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < held_out_fraction:
        return "validation"
    return "test" if place < held_out_fraction + test_fraction else "train"
