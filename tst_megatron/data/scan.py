"""One pass over a token file: its hash, its token counts, and whether its documents are whole.

The file is read once, in blocks of a fixed number of tokens, so the memory depends neither on the
file nor on its longest document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tst_megatron.data.counts import count_tokens
from tst_megatron.data.indexed import IndexedReader, bin_path
from tst_megatron.data.tokenizer import TokenizerFacts

BLOCK_TOKENS = 1 << 19
"""A block and what is computed of it stay in a core's cache."""

_BASE = 0x9E3779B97F4A7C15
"""Of the documents' hashes; odd, so that it has an inverse modulo 2^64."""
_MODULUS = 1 << 64

TakeHashes = Callable[[int, npt.NDArray[np.uint64]], None]
"""Takes the number of a document, and the hashes of it and those that follow it."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What one token file holds."""

    sha256: str
    counts: npt.NDArray[np.int64]
    """[vocabulary size] how often each token occurs."""
    problems: list[str]
    """What is wrong with its documents, in words."""


@dataclass(frozen=True, slots=True)
class _Block:
    start: int
    """Raw tokens before it in the file."""
    ids: npt.NDArray[Any]
    first: int
    """The document that the block starts in."""
    starts: npt.NDArray[np.int64]
    """Where documents start in the block; below 0 for one that goes on from the block before."""
    ends: npt.NDArray[np.int64]
    """Where they end, but for a last one that goes on in the next block."""


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
        take_hashes: called with hashes of whole documents, in order: equal documents have equal
            ones, and others hardly ever.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    faults = _Faults(reader)
    hashes = _DocumentHashes(take_hashes)
    buffer = np.empty(BLOCK_TOKENS, dtype=reader.dtype)
    with bin_path(reader.prefix).open("rb") as file:
        start = 0
        while start < reader.num_tokens:
            ids = buffer[: reader.num_tokens - start]
            if file.readinto(ids.data.cast("B")) != ids.nbytes:
                raise OSError(f"{bin_path(reader.prefix)}: was cut short while it was read")
            digest.update(ids.data.cast("B"))
            block = _block(reader, start, ids)
            _check_documents(block, tokenizer, faults)
            if count_tokens(ids, counts) != len(ids):
                faults.add(
                    f"an id outside the vocabulary (0 to {tokenizer.vocab_size - 1})",
                    start + np.flatnonzero((ids < 0) | (ids >= tokenizer.vocab_size)),
                )
            hashes.add(block)
            advance(ids.nbytes)
            start += len(ids)
    return Scan(digest.hexdigest(), counts, faults.problems())


def _block(reader: IndexedReader, start: int, ids: npt.NDArray[Any]) -> _Block:
    first, last = reader.document_at(start), reader.document_at(start + len(ids) - 1)
    starts = reader.starts(first, last + 1) - start
    ends = starts + reader.document_lengths[first : last + 1]
    return _Block(start, ids, first, starts, ends[ends <= len(ids)])


def _check_documents(block: _Block, tokenizer: TokenizerFacts, faults: _Faults) -> None:
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


class _Faults:
    """How often each kind of fault was found, and where first."""

    def __init__(self, reader: IndexedReader) -> None:
        self._reader = reader
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, kind: str, positions: npt.NDArray[np.int64]) -> None:
        """Note a fault at each of some raw tokens of the file, in ascending order."""
        if len(positions):
            number, first = self._found.get(kind, (0, int(positions[0])))
            self._found[kind] = (number + len(positions), first)

    def problems(self) -> list[str]:
        return [
            f"{bin_path(self._reader.prefix)}: {kind}, {number:,} "
            f"time{'s' if number > 1 else ''}, first in document "
            f"{self._reader.document_at(position):,} at raw token {position:,} of the file. "
            "Prepare the text again."
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

    def add(self, block: _Block) -> None:
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
