"""Megatron's .bin/.idx token files: a streaming, atomic writer and a thin memory-mapped reader.

`<prefix>.bin` holds the raw tokens of all documents in a row. `<prefix>.idx`, little endian: 9
bytes of magic, u64 version, u8 dtype code, u64 sequences, u64 length of the document index, int32
tokens of each sequence, int64 byte offset of each sequence, int64 document index. Every document is
one sequence here. Megatron itself is not imported: that takes ten seconds, and the format is small
and fixed.
"""

import bisect
import hashlib
import os
import shutil
import struct
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tst_megatron.data.tokens.fingerprint import fingerprint
from tst_megatron.data.tokens.gaps import Positions, gap_problem

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1
_DOCUMENTS_PER_BLOCK = 2**22
DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype("<u2"), 4: np.dtype("<i4")}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype Megatron gives tokens of this vocabulary: uint16 below 65500, else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def bin_path(prefix: Path) -> Path:
    """Return the token file of a prefix (a prefix may contain dots, so `with_suffix` is wrong)."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """Return the index file of a prefix."""
    return prefix.with_name(prefix.name + ".idx")


def where_it_leads(path: Path) -> str:
    """Of a link its target, in words; nothing of a file."""
    return f" (a link to {path.readlink()})" if path.is_symlink() else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedFacts:
    """Size and content hashes of one finished .bin/.idx pair."""

    num_documents: int
    num_tokens: int
    bin_sha256: str
    idx_sha256: str
    bin_fingerprint: str
    idx_fingerprint: str
    """What a start-up compares (`fingerprint.py`)."""


class IndexedWriter:
    """Write documents one after another; the files appear at their final names in `finish` alone.

    Use as a context manager: leaving without `finish` removes what was written. Memory per
    document is 4 bytes, also in `finish`; tokens are never kept.

    Args:
        prefix: path without extension; `<prefix>.bin` and `<prefix>.idx` are written.
        vocab_size: ids at or above it are refused; it also sets the dtype.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        """Open the temporary files beside the final ones."""
        self.prefix = prefix
        self.dtype = token_dtype(vocab_size)
        self._vocab_size = vocab_size
        self._lengths = array("i")
        self._digest = hashlib.sha256()
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._beside = Path(tempfile.mkdtemp(prefix=f".{prefix.name}.", dir=prefix.parent))
        self._bin = (self._beside / "bin").open("wb")

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the temporary files."""
        self._bin.close()
        shutil.rmtree(self._beside, ignore_errors=True)

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    def add_document(self, tokens: Sequence[int] | npt.NDArray[Any]) -> None:
        """Append one document: [n] token ids, at least one; see `add_documents`."""
        ids = np.asarray(tokens, dtype=np.int64)
        self.add_documents(ids, np.asarray([ids.size], dtype=np.int32))

    def add_documents(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int32]) -> None:
        """Append several documents at once.

        Args:
            tokens: [sum of lengths] token ids of all documents in a row.
            lengths: [documents] tokens of each document, at least one each.

        Raises:
            ValueError: an empty document, or an id outside the vocabulary.
        """
        assert tokens.ndim == 1 and len(tokens) == int(lengths.sum(dtype=np.int64))
        if not lengths.size:
            return
        first = len(self._lengths)
        if int(lengths.min()) < 1:
            raise ValueError(
                f"{self.prefix}: document {first + int(lengths.argmin())} has no tokens, at least "
                "one is needed. Leave empty documents out."
            )
        smallest, largest = int(tokens.min()), int(tokens.max())
        if smallest < 0 or largest >= self._vocab_size:
            raise ValueError(
                f"{self.prefix}: documents from {first} on hold token ids {smallest} to {largest}, "
                f"the vocabulary has 0 to {self._vocab_size - 1}. Use the vocabulary size of the "
                "tokenizer that made them."
            )
        self.add_stored([tokens.astype(self.dtype).tobytes()], lengths)

    def add_stored(self, blocks: Iterable[bytes], lengths: npt.NDArray[np.int32]) -> None:
        """Append documents as another .bin of the same dtype holds them; nothing is checked."""
        for block in blocks:
            self._digest.update(block)
            self._bin.write(block)
        self._lengths.frombytes(lengths.astype(np.int32).tobytes())

    def finish(self, *, allow_empty: bool = False) -> IndexedFacts:
        """Write the index and give both files their final names, the index last.

        Raises:
            ValueError: no document was added, which only a shard may have (`allow_empty`).
        """
        if not self._lengths and not allow_empty:
            raise ValueError(
                f"{self.prefix}: no documents, at least one is needed. Give more text."
            )
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        self._bin.flush()
        os.fsync(self._bin.fileno())
        self._bin.close()
        idx_sha256 = self._write_index(lengths)
        (self._beside / "bin").replace(bin_path(self.prefix))
        (self._beside / "idx").replace(idx_path(self.prefix))
        return IndexedFacts(
            num_documents=len(lengths),
            num_tokens=int(lengths.sum(dtype=np.int64)),
            bin_sha256=self._digest.hexdigest(),
            idx_sha256=idx_sha256,
            bin_fingerprint=fingerprint(bin_path(self.prefix)),
            idx_fingerprint=fingerprint(idx_path(self.prefix)),
        )

    def _write_index(self, lengths: npt.NDArray[np.int32]) -> str:
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        digest = hashlib.sha256()
        with (self._beside / "idx").open("wb") as file:
            header = HEADER.pack(MAGIC, VERSION, code, len(lengths), len(lengths) + 1)
            for part in chain([header], _index_parts(lengths, self.dtype.itemsize)):
                digest.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()


def _index_parts(lengths: npt.NDArray[np.int32], itemsize: int) -> Iterator[bytes]:
    """The three sections of an index, in blocks: a whole one of offsets may be tens of GB."""
    firsts = range(0, len(lengths), _DOCUMENTS_PER_BLOCK)
    blocks = [slice(first, first + _DOCUMENTS_PER_BLOCK) for first in firsts]
    for block in blocks:
        yield lengths[block].astype("<i4").tobytes()
    end = 0
    for block in blocks:
        ends = end + np.cumsum(lengths[block], dtype="<i8")
        yield ((ends - lengths[block]) * itemsize).tobytes()
        end = int(ends[-1])
    for first in range(0, len(lengths) + 1, _DOCUMENTS_PER_BLOCK):
        stop = min(first + _DOCUMENTS_PER_BLOCK, len(lengths) + 1)
        yield np.arange(first, stop, dtype="<i8").tobytes()


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
        # The last document's end, since the sum would read the whole index on every rank.
        self.num_tokens = 0
        if num_sequences:
            last_offset = int(self._offsets[-1]) // self.dtype.itemsize
            self.num_tokens = last_offset + int(self.document_lengths[-1])

    def check(self) -> None:
        """Read the whole index: documents follow each other without a gap, and none is empty.

        Where the .bin holds others between them, there may be gaps, of whole tokens.

        Raises:
            ValueError: they do not; the first such document is named.
        """
        if self.has_gaps:
            problem = gap_problem(self.document_lengths, self._offsets, self.dtype, self.num_tokens)
            if problem:
                raise ValueError(f"{idx_path(self.prefix)}: {problem}. Adopt the pair again.")
        end = 0
        for first in range(0, self.num_documents, _DOCUMENTS_PER_BLOCK):
            part = slice(first, first + _DOCUMENTS_PER_BLOCK)
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
        """The document that holds a raw token; the number of documents at the end of all."""
        if position >= self.num_tokens:
            return self.num_documents
        if self.has_gaps:
            return self._positions.document_at(position)
        offset = position * self.dtype.itemsize
        # Not numpy's: it would copy the whole array, since the file's numbers are not aligned.
        return bisect.bisect_right(self._offsets, offset) - 1

    def starts(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Positions at which documents [first, stop) start."""
        if self.has_gaps:
            return self._positions.starts(first, stop)
        return self._offsets[first:stop] // self.dtype.itemsize

    def stretch(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Raw tokens at positions [start, stop); a read-only view where there are no gaps."""
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
