"""Append stored tokens to a writer: hashed against what was recorded, and counted, on their way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tst_megatron.data.tokens.counts import count_tokens
from tst_megatron.data.tokens.format import bin_path, idx_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedWriter
from tst_megatron.system.files import file_sha256

BLOCK_BYTES = 1 << 23
"""A multiple of every token size, so that no token is cut."""


def append(
    writer: IndexedWriter,
    prefix: Path,
    sha256: tuple[str, str],
    *,
    counts: npt.NDArray[np.int64] | None = None,
    keep: npt.NDArray[np.bool_] | None = None,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> Path | None:
    """Append the documents of a .bin/.idx pair.

    Args:
        writer: of tokens with the same vocabulary.
        prefix: of the pair.
        sha256: of its .bin and its .idx, as recorded when they were written.
        counts: [vocabulary size] is added to: how often each appended token occurs.
        keep: [documents] which to append; all when None.
        advance: called with the bytes of the .bin that were read since the last call.

    Returns:
        The file that is not what was recorded, or None.
    """
    # Its pages stay in memory for the lengths, so the index too is read from disk once.
    if file_sha256(idx_path(prefix)) != sha256[1]:
        return idx_path(prefix)
    lengths = IndexedReader(prefix).document_lengths
    digest = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        position = 0
        ends = None if keep is None else np.cumsum(lengths, dtype=np.int64)
        with bin_path(prefix).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                advance(len(block))
                tokens = kept = np.frombuffer(block, dtype=writer.dtype)
                if keep is not None and ends is not None:
                    kept = tokens[_mask(position, len(tokens), ends, keep)]
                position += len(tokens)
                if counts is not None and len(kept):
                    count_tokens(kept, counts)
                yield block if kept is tokens else kept.tobytes()

    writer.add_stored(blocks(), lengths if keep is None else lengths[keep])
    return None if digest.hexdigest() == sha256[0] else bin_path(prefix)


def first_occurrences(hashes: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[np.bool_]]:
    """Mark the documents that are not exact copies of an earlier one.

    Args:
        hashes: [documents, 2] uint64 each: 128 bits of each document, of parts in their order.

    Returns:
        [documents] for each part.
    """
    together = np.concatenate(hashes)
    # Stable, so that the first of equal ones comes first.
    order = np.lexsort((together[:, 1], together[:, 0]))
    ordered = together[order]
    is_first = np.ones(len(together), dtype=np.bool_)
    is_first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.split(is_first, np.cumsum([len(each) for each in hashes])[:-1])


def _mask(
    position: int, num_tokens: int, ends: npt.NDArray[np.int64], keep: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Mark those of the tokens [position, position + num_tokens) whose documents are kept."""
    first = int(np.searchsorted(ends, position, side="right"))
    last = int(np.searchsorted(ends, position + num_tokens, side="left"))
    bounds = np.minimum(ends[first : last + 1], position + num_tokens)
    return np.repeat(keep[first : last + 1], np.diff(bounds, prepend=position))
