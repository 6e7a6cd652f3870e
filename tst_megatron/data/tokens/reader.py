"""Read Megatron's .bin/.idx token files through memory maps, without Megatron."""

import bisect
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tst_megatron.data.tokens.format import (
    DOCUMENTS_PER_BLOCK,
    DTYPES,
    HEADER,
    MAGIC,
    VERSION,
    bin_path,
    idx_path,
    where_it_leads,
)
from tst_megatron.data.tokens.gaps import Positions, gap_problem


class IndexedReader:
    """Memory-mapped reader of a .bin/.idx pair, also of pairs that Megatron's own tools wrote.

    A *position* counts the raw tokens of all documents in a row. In a split of an adopted pair
    (`adopt.py`) the .bin holds documents of other splits between them, which have no position.

    Args:
        prefix: common path of both files, without extension.
        num_tokens: of all documents, where the .bin holds others between them; None where these
            fill it.
        has_empty_documents: the index may list documents without a sequence, as Megatron's tools
            do for texts without a token. They are none of this reader's documents.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the index is not Megatron's, is cut short, or does not match the size of the
            .bin.
    """

    def __init__(
        self, prefix: Path, *, num_tokens: int | None = None, has_empty_documents: bool = False
    ) -> None:
        """Map both files and check that they belong together."""
        self.prefix = prefix
        self.has_gaps = num_tokens is not None
        self._has_empty_documents = has_empty_documents
        for path in (bin_path(prefix), idx_path(prefix)):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such file{where_it_leads(path)}. Give the common path of .bin and "
                    ".idx without extension."
                )
        self._read_index(np.memmap(idx_path(prefix), dtype=np.uint8, mode="r"))
        self._positions = Positions(self.document_lengths)
        num_bytes = bin_path(prefix).stat().st_size
        if self.has_gaps:
            self._check_size_with_gaps(num_bytes)
            self.num_tokens = num_tokens or 0
        elif num_bytes != self.num_tokens * self.dtype.itemsize:
            raise ValueError(
                f"{bin_path(prefix)}: {num_bytes} bytes, its index describes {self.num_tokens} "
                f"tokens of {self.dtype.itemsize} bytes. The pair is incomplete or mixed: prepare "
                "it again."
            )
        # An empty file cannot be mapped; a shard may have an empty split.
        self._tokens: npt.NDArray[Any] = np.empty(0, dtype=self.dtype)
        if num_bytes:
            self._tokens = np.memmap(bin_path(prefix), dtype=self.dtype, mode="r")

    def _check_size_with_gaps(self, num_bytes: int) -> None:
        """The last document must end inside the file; ``num_tokens`` is its end until here."""
        end = self.num_tokens * self.dtype.itemsize
        if end > num_bytes or num_bytes % self.dtype.itemsize:
            raise ValueError(
                f"{bin_path(self.prefix)}: {num_bytes} bytes{where_it_leads(bin_path(self.prefix))}"
                f", its last document ends at byte {end} and a token has {self.dtype.itemsize} "
                "bytes. The original was changed: bring it back, or adopt it again."
            )

    def _read_index(self, index: npt.NDArray[np.uint8]) -> None:
        path = idx_path(self.prefix)
        fix = "Prepare the text again; version 1 with uint16 or int32 tokens can be read."
        if len(index) < HEADER.size:
            raise ValueError(f"{path}: {len(index)} bytes are too few for an index. {fix}")
        magic, version, code, num_sequences, num_index = HEADER.unpack(
            index[: HEADER.size].tobytes()
        )
        if magic != MAGIC or version != VERSION or code not in DTYPES:
            raise ValueError(
                f"{path}: magic {magic!r}, version {version}, dtype code {code} are unknown. {fix}"
            )
        num_bytes = HEADER.size + 12 * num_sequences + 8 * num_index
        if len(index) != num_bytes:
            raise ValueError(f"{path}: {len(index)} bytes, its header promises {num_bytes}. {fix}")
        if num_index != num_sequences + 1 and not self._has_empty_documents:
            raise ValueError(
                f"{path}: {num_sequences} sequences in {num_index - 1} documents, one sequence per "
                "document is needed. Prepare the text without sentence splitting."
            )
        start = HEADER.size + 4 * num_sequences
        self.dtype = DTYPES[code]
        self.document_lengths: npt.NDArray[np.int32] = index[HEADER.size : start].view("<i4")
        """[num_documents] int32: tokens of each document, its end-of-document token included."""
        stop = start + 8 * num_sequences
        self._offsets: npt.NDArray[np.int64] = index[start:stop].view("<i8")
        self._document_index: npt.NDArray[np.int64] = index[stop:].view("<i8")
        self.num_documents = len(self.document_lengths)
        self.num_empty_documents = num_index - 1 - num_sequences
        """Documents of the index without a sequence."""
        # Taken from the last document's end: a sum would read all of the index on every rank.
        self.num_tokens = 0
        if num_sequences:
            last_offset = int(self._offsets[-1]) // self.dtype.itemsize
            self.num_tokens = last_offset + int(self.document_lengths[-1])

    def check(self) -> None:
        """Read all of the index: documents follow each other without a gap, and none is empty.

        In a split of an adopted pair there may be gaps between them, which cut no token.

        Raises:
            ValueError: they do not; the first such document is named.
        """
        if self.has_gaps:
            problem = gap_problem(self.document_lengths, self._offsets, self.dtype, self.num_tokens)
            if problem:
                raise ValueError(f"{idx_path(self.prefix)}: {problem}. Adopt the pair again.")
        end = 0
        for first in range(0, self.num_documents, DOCUMENTS_PER_BLOCK):
            part = slice(first, first + DOCUMENTS_PER_BLOCK)
            lengths = self.document_lengths[part]
            ends = end + np.cumsum(lengths, dtype=np.int64)
            starts = (ends - lengths) * self.dtype.itemsize
            wrong = np.flatnonzero((self._offsets[part] != starts) | (lengths < 1))
            if len(wrong) and not self.has_gaps:
                raise ValueError(
                    f"{idx_path(self.prefix)}: document {first + int(wrong[0])} is empty or does "
                    "not start where the one before it ends. Prepare the text again."
                )
            end = int(ends[-1])
            # Megatron reads documents through it; here it only counts them.
            numbers = self._document_index[first : first + len(lengths) + 1]
            wrong = np.flatnonzero(numbers != np.arange(first, first + len(numbers)))
            if len(wrong) and not self._has_empty_documents:
                raise ValueError(
                    f"{idx_path(self.prefix)}: its document index skips or repeats a sequence at "
                    f"document {first + int(wrong[0])}. Prepare the text again."
                )

    def document_at(self, position: int) -> int:
        """Return the document that holds a raw token; the number of documents at the end of all."""
        if position >= self.num_tokens:
            return self.num_documents
        if self.has_gaps:
            return self._positions.document_at(position)
        offset = position * self.dtype.itemsize
        # numpy's search would copy the array, as the file's numbers are not aligned.
        return bisect.bisect_right(self._offsets, offset) - 1

    def starts(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the positions at which documents [first, stop) start."""
        if self.has_gaps:
            return self._positions.starts(first, stop)
        return self._offsets[first:stop] // self.dtype.itemsize

    def stretch(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return the raw tokens [start, stop), as a read-only view where there are no gaps."""
        if not self.has_gaps:
            return self._tokens[start:stop]
        stop = min(stop, self.num_tokens)
        if start >= stop:
            return np.empty(0, dtype=self.dtype)
        document = self.document_at(start)
        offset = start - int(self.starts(document, document + 1)[0])
        parts = []
        while start < stop:
            parts.append(self.tokens(document, offset)[: stop - start])
            start += len(parts[-1])
            document, offset = document + 1, 0
        return np.concatenate(parts)

    def tokens(self, document: int, offset: int = 0, length: int | None = None) -> npt.NDArray[Any]:
        """Return tokens of one document, a read-only view of the file in its stored dtype.

        Args:
            document: position of the document in the file, from 0.
            offset: first token wanted, counted inside the document.
            length: number of tokens; all that follow `offset` when None.

        Raises:
            IndexError: the document or the range does not exist.
        """
        if not 0 <= document < self.num_documents:
            raise IndexError(
                f"{self.prefix}: document {document}, the file has 0 to {self.num_documents - 1}."
            )
        available = int(self.document_lengths[document])
        length = available - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > available:
            raise IndexError(
                f"{self.prefix}: tokens [{offset}, {offset + length}) of document {document}, "
                f"which has {available}."
            )
        start = int(self._offsets[document]) // self.dtype.itemsize + offset
        return self._tokens[start : start + length]
