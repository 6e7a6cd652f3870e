"""Read every document of a pair, and let its text decide which split it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from tst_megatron.data.prepare.settings import Settings
from tst_megatron.data.text.split import SPLITS, split_of
from tst_megatron.data.tokenizer.facts import Tokenizer, body
from tst_megatron.data.tokens.format import bin_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.verify.token_scan import Faults, block_at, check_block
from tst_megatron.system.processes.worker_pool import in_order
from tst_megatron.system.progress import byte_progress

TOKENS_PER_RANGE = 1 << 23
"""A worker reads about so many tokens at a time, as a range of documents."""
LEFT_OUT = len(SPLITS)
"""In place of a split's number: a document without text, which `prepare` leaves out too."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """The pair and the rules by which a worker decides splits."""

    prefix: Path
    tokenizer: Tokenizer
    settings: Settings


@dataclass(frozen=True, slots=True)
class _Read:
    """The splits of some documents, and the faults found in them."""

    splits: npt.NDArray[np.uint8]
    """[documents] number of each one's split in SPLITS, or LEFT_OUT."""
    train_counts: npt.NDArray[np.int64]
    """[vocabulary size] how often each token occurs in the training documents."""
    problems: list[str]


def open_pair(prefix: Path) -> IndexedReader:
    """Open a pair of another tool, which may list documents without a token."""
    return IndexedReader(prefix, has_empty_documents=True)


def decide_splits(
    job: Adoption, reader: IndexedReader, workers: int, console: Console | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], str]:
    """Return each document's split, the counts of training tokens, and the hash of the .bin.

    Raises:
        ValueError: documents of another tokenizer or another rule; those of the first range that
            has some are named.
    """
    splits = np.empty(reader.num_documents, dtype=np.uint8)
    counts = np.zeros(job.tokenizer.facts.vocab_size, dtype=np.int64)
    digest = hashlib.sha256()
    ranges = list(_ranges(reader))
    path = bin_path(job.prefix)
    with (
        path.open("rb") as file,
        byte_progress(console, "reading", path.stat().st_size) as advance,
        closing(
            in_order(
                partial(_read_range, job),
                ranges,
                workers=min(workers, len(ranges)),
                advance=advance,
            )
        ) as results,
    ):
        for (first, stop), read in results:
            if isinstance(read, Exception):
                raise read
            if read.problems:
                raise ValueError("\n".join(f"{each} {FIX}" for each in read.problems))
            splits[first:stop] = read.splits
            counts += read.train_counts
            # A worker has just read these bytes, so they are still in memory.
            num_tokens = int(reader.document_lengths[first:stop].sum(dtype=np.int64))
            digest.update(file.read(num_tokens * reader.dtype.itemsize))
    return splits, counts, digest.hexdigest()


FIX = "Adopt the pair with the tokenizer that made it (--eod-token), or prepare the text."


def _ranges(reader: IndexedReader) -> Iterator[tuple[int, int]]:
    """Yield ranges of documents [first, stop) for the workers; together they are all documents."""
    first = 0
    for position in range(TOKENS_PER_RANGE, reader.num_tokens, TOKENS_PER_RANGE):
        stop = reader.document_at(position)
        if stop > first:
            yield first, stop
            first = stop
    yield first, reader.num_documents


def _read_range(job: Adoption, documents: tuple[int, int], advance: Callable[[int], None]) -> _Read:
    """Check some documents, decode each, and let its text decide its split."""
    reader, facts = open_pair(job.prefix), job.tokenizer.facts
    first, stop = documents
    start = int(reader.starts(first, first + 1)[0])
    end = int(reader.starts(stop - 1, stop)[0]) + int(reader.document_lengths[stop - 1])
    ids = reader.stretch(start, end)
    # Faults of the tokens first: a text that is decoded from damaged ids decides nothing.
    counts, faults = np.zeros(facts.vocab_size, dtype=np.int64), Faults()
    check_block(block_at(reader, start, ids), facts, counts, faults)
    splits = np.zeros(stop - first, dtype=np.uint8)
    if problems := faults.problems(reader):
        return _Read(splits, counts, problems)
    for document in range(first, stop):
        tokens = reader.tokens(document)
        number = _split_number(job, tokens)
        splits[document - first] = number
        if number:
            # The check above has counted the tokens of every document; only train counts.
            np.subtract.at(counts, tokens, 1)
        advance(tokens.nbytes)
    return _Read(splits, counts, [])


def _split_number(job: Adoption, tokens: npt.NDArray[Any]) -> int:
    text = job.tokenizer.decode(body(tokens.tolist(), job.tokenizer.facts))
    if not text:
        return LEFT_OUT
    return SPLITS.index(
        split_of(
            text,
            held_out_fraction=job.settings.held_out_fraction,
            test_fraction=job.settings.test_fraction,
        )
    )
