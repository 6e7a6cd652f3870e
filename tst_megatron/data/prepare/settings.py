"""Say what a text becomes and how much of it may be lost: the choices of who calls `prepare`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """The choices that decide, beside inputs and tokenizer, which tokens a text becomes."""

    eod_token: str | None
    """Special token that ends documents, where it is not the tokenizer's EOS."""
    special_tokens_in_text: bool
    """Text that spells a special token becomes its id; else it is text like any other."""
    text_key: str
    """Key or column of the documents' text."""
    held_out_fraction: float
    """Share of documents (0-1, both excluded) that go to validation. A document's split depends on
    its text alone."""
    test_fraction: float
    """Share of documents that go to test, which is evaluated once, after the last step; 0 for no
    test split."""
    deduplicate: bool
    """Leave out documents whose text an earlier one has."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest shares of a text that may be lost or left out before a preparation fails."""

    max_rejected_fraction: float
    """Share of lines and rows (0-1) that may hold no document and are left out. If it is above 0,
    files without any may be left out too. rejected.jsonl lists all of them."""
    max_changed_fraction: float
    """Share of the documents that are decoded again (0-1) that may come back otherwise
    (`round_trip.py`)."""
    allow_empty_splits: bool
    """A split may have no document, as in any shard. Training refuses such a folder."""
