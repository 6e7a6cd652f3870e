"""Look at some documents of a pair of another tool, before all of them are read.

A wrong tokenizer shows in seconds here. If it is the one that made them, documents end with its
EOD, and their text encodes to the same ids again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
from rich.console import Console

from tst_megatron.data.tokenizer.facts import Tokenizer, body
from tst_megatron.data.tokenizer.sentencepiece import SentencePieceTokenizer
from tst_megatron.data.tokens.format import bin_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.verify.inspect import visible

NUM_DOCUMENTS = 1000
NUM_TOKENS = 1 << 20
"""Fewer documents where they are long, to take seconds."""
LARGEST_CHANGED_FRACTION = 0.01
"""Of documents whose text encodes to other ids, as damaged characters may."""
DOCUMENTS_SHOWN, CHARACTERS_SHOWN = 3, 300


def look_at_sample(reader: IndexedReader, tokenizer: Tokenizer, console: Console | None) -> None:
    """Compare documents from all over a file with a tokenizer, and show a few as text.

    Args:
        reader: of the pair.
        tokenizer: that is said to have made it.
        console: where the text goes; nowhere when None.

    Raises:
        ValueError: it did not; with everything that tells.
    """
    documents = list(_chosen(reader))
    sample = [reader.tokens(document) for document in documents]
    vocab_size = tokenizer.facts.vocab_size
    inside = [ids for ids in sample if int(ids.min()) >= 0 and int(ids.max()) < vocab_size]
    changed = [ids for ids in inside if not _comes_back(ids, tokenizer)]
    if console:
        for document in documents[:DOCUMENTS_SHOWN]:
            _show(console, document, reader.tokens(document), tokenizer)
    problems = _problems(sample, len(inside), len(changed), tokenizer)
    if problems:
        of = f"{bin_path(reader.prefix)}: of {len(sample):,} sampled documents"
        fix = (
            "Name the tokenizer that made the pair, or prepare the text again: `data prepare` "
            "takes the same inputs."
        )
        raise ValueError("\n".join([*(f"{of} {problem}." for problem in problems), fix]))
    if console:
        console.print(
            f"{len(sample) - len(changed):,} of {len(sample):,} sampled documents encode to the "
            "same ids again",
            highlight=False,
            soft_wrap=True,
        )


def _chosen(reader: IndexedReader) -> Iterator[int]:
    documents = range(reader.num_documents)
    num_tokens = 0
    for document in random.Random(0).sample(documents, min(NUM_DOCUMENTS, len(documents))):
        num_tokens += int(reader.document_lengths[document])
        yield document
        if num_tokens > NUM_TOKENS:
            return


def _comes_back(ids: npt.NDArray[Any], tokenizer: Tokenizer) -> bool:
    """Tell whether the text of a document has its ids; BOS and EOD are compared elsewhere."""
    inner = body(ids.tolist(), tokenizer.facts)
    if _begins_with_foreign_bos(ids, tokenizer):
        inner = inner[1:]  # A problem of its own, which hides nothing else this way.
    (again,) = tokenizer.encode([tokenizer.decode(inner)])
    return inner == body(again.tolist(), tokenizer.facts)


def _begins_with_foreign_bos(ids: npt.NDArray[Any], tokenizer: Tokenizer) -> bool:
    """Tell whether a document begins with the BOS of a SentencePiece model, which none has here."""
    return isinstance(tokenizer, SentencePieceTokenizer) and ids[0] == tokenizer.bos_piece


def _problems(
    sample: list[npt.NDArray[Any]], num_inside: int, num_changed: int, tokenizer: Tokenizer
) -> list[str]:
    facts = tokenizer.facts
    problems = []
    if outside := len(sample) - num_inside:
        largest = max(int(ids.max()) for ids in sample)
        problems.append(
            f"{outside:,} have an id outside the tokenizer's vocabulary (0 to "
            f"{facts.vocab_size - 1:,}; the largest is {largest:,})"
        )
    others = Counter(int(ids[-1]) for ids in sample if ids[-1] != facts.eod_id)
    if others:
        (token, times) = others.most_common(1)[0]
        problems.append(
            f"{others.total():,} do not end with EOD ({facts.eod_id}), {times:,} of them end with "
            f"id {token}; either the pair was made without --append-eod, or another token is its "
            "EOD (--eod-token)"
        )
    if facts.bos_id is not None and (without := sum(ids[0] != facts.bos_id for ids in sample)):
        problems.append(
            f"{without:,} do not begin with BOS ({facts.bos_id}), which this tokenizer puts there"
        )
    if with_bos := [ids for ids in sample if _begins_with_foreign_bos(ids, tokenizer)]:
        problems.append(
            f"{len(with_bos):,} begin with the model's BOS ({int(with_bos[0][0])}), and documents "
            "of a SentencePiece model begin without one here. The pair was made with BOS before "
            "each document: make it again without"
        )
    inner = sum(bool((ids[:-1] == facts.eod_id).any()) for ids in sample)
    if inner and not facts.special_tokens_in_text:
        problems.append(
            f"{inner:,} have EOD ({facts.eod_id}) inside; text that spells it became its id if "
            "--special-tokens-in-text says so"
        )
    if num_changed > LARGEST_CHANGED_FRACTION * len(sample):
        # A SentencePiece model never reads special tokens in text, and refuses that option.
        is_model = isinstance(tokenizer, SentencePieceTokenizer)
        spelled = ", or text that spells special tokens became their ids (--special-tokens-in-text)"
        problems.append(
            f"{num_changed:,} have a text that encodes to other ids, so another tokenizer made them"
            f"{'' if is_model else spelled}"
        )
    return problems


def _show(console: Console, document: int, ids: npt.NDArray[Any], tokenizer: Tokenizer) -> None:
    """Print the beginning of a document as text; ids without a text are left out."""
    known = [token for token in ids[:CHARACTERS_SHOWN].tolist() if _is_id(token, tokenizer)]
    text = tokenizer.decode(body(known, tokenizer.facts) if known else known)
    console.print(f"--- document {document:,}, {len(ids):,} tokens", highlight=False)
    console.print(visible(text[:CHARACTERS_SHOWN]), highlight=False, markup=False, soft_wrap=True)


def _is_id(token: int, tokenizer: Tokenizer) -> bool:
    return 0 <= token < tokenizer.facts.vocab_size
