"""Read a token file once: hash it, count its tokens, and check that its documents are complete.

The file is read once, in blocks of a fixed number of tokens, so the memory depends neither on the
file nor on its longest document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tst_megatron.data.tokenizer.facts import TokenizerFacts
from tst_megatron.data.tokens.counts import count_tokens
from tst_megatron.data.tokens.format import bin_path
from tst_megatron.data.tokens.reader import IndexedReader

BLOCK_TOKENS = 1 << 19
"""A block and what is computed of it stay in a core's cache."""

_BASE = 0x9E3779B97F4A7C15
"""Of the documents' hashes; odd, so that it has an inverse modulo 2^64."""
_MODULUS = 1 << 64

TakeHashes = Callable[[int, npt.NDArray[np.uint64]], None]
"""Takes the number of a document, and the hashes of it and those that follow it."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of reading one token file."""

    sha256: str | None
    """Of the file; None where it holds documents of other splits too."""
    counts: npt.NDArray[np.int64]
    """[vocabulary size] how often each token occurs."""
    problems: list[str]
    """Faults of its documents, in words."""


@dataclass(frozen=True, slots=True)
class Block:
    """Raw tokens of documents in a row."""

    start: int
    """Position of its first token (``IndexedReader``)."""
    ids: npt.NDArray[Any]
    first: int
    """The document that the block starts in."""
    starts: npt.NDArray[np.int64]
    """Starts of documents in the block; below 0 for one that began in an earlier block."""
    ends: npt.NDArray[np.int64]
    """Their ends in the block; a last document that continues in the next block has none."""


def scan(
    reader: IndexedReader,
    tokenizer: TokenizerFacts,
    *,
    advance: Callable[[int], None] = lambda num_bytes: None,
    take_hashes: TakeHashes = lambda first, hashes: None,
) -> Scan:
    """Read a token file whose index is sound (``IndexedReader.check``).

    Args:
        reader: of the pair.
        tokenizer: that made the tokens.
        advance: called with the bytes of each block.
        take_hashes: called with hashes of complete documents, in order: equal documents have equal
            hashes, and others hardly ever.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    faults = Faults()
    hashes = _DocumentHashes(take_hashes)
    start = 0
    for ids in _in_blocks(reader):
        if not reader.has_gaps:
            digest.update(ids.data.cast("B"))
        block = block_at(reader, start, ids)
        check_block(block, tokenizer, counts, faults)
        hashes.add(block)
        advance(ids.nbytes)
        start += len(ids)
    problems = [f"{problem} Prepare the text again." for problem in faults.problems(reader)]
    return Scan(None if reader.has_gaps else digest.hexdigest(), counts, problems)


def _in_blocks(reader: IndexedReader) -> Iterator[npt.NDArray[Any]]:
    """Yield all raw tokens in a row, some at a time; an array is valid until the next one."""
    if reader.has_gaps:
        for start in range(0, reader.num_tokens, BLOCK_TOKENS):
            yield reader.stretch(start, start + BLOCK_TOKENS)
        return
    buffer = np.empty(BLOCK_TOKENS, dtype=reader.dtype)
    start = 0
    with bin_path(reader.prefix).open("rb") as file:
        while start < reader.num_tokens:
            ids = buffer[: reader.num_tokens - start]
            if file.readinto(ids.data.cast("B")) != ids.nbytes:
                raise OSError(f"{bin_path(reader.prefix)}: was cut short while it was read")
            yield ids
            start += len(ids)


def check_block(
    block: Block, tokenizer: TokenizerFacts, counts: npt.NDArray[np.int64], faults: Faults
) -> None:
    """Check the documents and ids of a block, and count its ids.

    Args:
        block: of a token file.
        tokenizer: that made the tokens.
        counts: [vocabulary size], added to.
        faults: added to.
    """
    ids = block.ids
    _check_documents(block, tokenizer, faults)
    if count_tokens(ids, counts) != len(ids):
        faults.add(
            f"an id outside the vocabulary (0 to {tokenizer.vocab_size - 1})",
            block.start + np.flatnonzero((ids < 0) | (ids >= tokenizer.vocab_size)),
        )


def block_at(reader: IndexedReader, start: int, ids: npt.NDArray[Any]) -> Block:
    """The block of these raw tokens, which begins at a position."""
    first, last = reader.document_at(start), reader.document_at(start + len(ids) - 1)
    starts = reader.starts(first, last + 1) - start
    ends = starts + reader.document_lengths[first : last + 1]
    return Block(start, ids, first, starts, ends[ends <= len(ids)])


def _check_documents(block: Block, tokenizer: TokenizerFacts, faults: Faults) -> None:
    ids, eod_id, bos_id = block.ids, tokenizer.eod_id, tokenizer.bos_id
    last_tokens = block.ends - 1
    is_eod = ids[last_tokens] == eod_id
    faults.add(f"no EOD ({eod_id}) at the end of a document", block.start + last_tokens[~is_eod])
    if not tokenizer.special_tokens_in_text:
        # Looking for them takes longer than counting them.
        if np.count_nonzero(ids == eod_id) != np.count_nonzero(is_eod):
            inside = np.setdiff1d(np.flatnonzero(ids == eod_id), last_tokens)
            faults.add(f"EOD ({eod_id}) inside a document", block.start + inside)
    if bos_id is not None:
        starts = block.starts[block.starts >= 0]
        wrong = starts[ids[starts] != bos_id]
        faults.add(f"no BOS ({bos_id}) at the start of a document", block.start + wrong)


class Faults:
    """Counts of each kind of fault, with the place of the first."""

    def __init__(self) -> None:
        """Begin without one."""
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, kind: str, positions: npt.NDArray[np.int64]) -> None:
        """Note a fault at each of some raw tokens, by their positions in ascending order."""
        if len(positions):
            number, first = self._found.get(kind, (0, int(positions[0])))
            self._found[kind] = (number + len(positions), first)

    def problems(self, reader: IndexedReader) -> list[str]:
        """Return a sentence for each kind; ``reader`` is of the file."""
        return [
            f"{bin_path(reader.prefix)}: {kind}, {number:,} "
            f"time{'s' if number > 1 else ''}, first in document "
            f"{reader.document_at(position):,} at raw token {position:,} of the "
            f"{'split' if reader.has_gaps else 'file'}."
            for kind, (number, position) in self._found.items()
        ]


class _DocumentHashes:
    """Hashes of documents, also of those that cross blocks.

    The hash of tokens x_0, x_1, ... is the sum of x_i * BASE^i modulo 2^64. A block gives every
    token the power of its place in the block, which is divided out again document by document.
    """

    def __init__(self, take: TakeHashes) -> None:
        self._take = take
        self._powers = _powers(_BASE)
        self._inverses = _powers(pow(_BASE, -1, _MODULUS))
        self._unfinished = 0

    def add(self, block: Block) -> None:
        """Hand on the hashes of the documents that end in the next block of the file."""
        # Unsigned, since numpy multiplies signed with unsigned numbers as floating-point ones.
        ids = block.ids.view(f"<u{block.ids.itemsize}")
        begins = np.maximum(block.starts, 0)
        hashes = np.add.reduceat(ids * self._powers[: len(ids)], begins) * self._inverses[begins]
        if block.starts[0] < 0:
            shift = pow(_BASE, -int(block.starts[0]), _MODULUS)
            hashes[0] = (self._unfinished + int(hashes[0]) * shift) % _MODULUS
        if len(hashes) > len(block.ends):
            self._unfinished = int(hashes[-1])
        self._take(block.first, hashes[: len(block.ends)])


def _powers(base: int) -> npt.NDArray[np.uint64]:
    powers = np.full(BLOCK_TOKENS, base, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
