"""Write Megatron's .bin/.idx token files as a stream; they appear only when they are complete."""

import hashlib
import os
import shutil
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
from tst_megatron.data.tokens.format import (
    DOCUMENTS_PER_BLOCK,
    DTYPES,
    HEADER,
    MAGIC,
    VERSION,
    bin_path,
    idx_path,
    token_dtype,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedFacts:
    """Size and content hashes of one finished .bin/.idx pair."""

    num_documents: int
    num_tokens: int
    bin_sha256: str
    idx_sha256: str
    bin_fingerprint: str
    idx_fingerprint: str
    """Short forms of the content that a start-up compares (`fingerprint.py`)."""


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
    """Yield the three sections of an index in blocks: all offsets together may be tens of GB."""
    firsts = range(0, len(lengths), DOCUMENTS_PER_BLOCK)
    blocks = [slice(first, first + DOCUMENTS_PER_BLOCK) for first in firsts]
    for block in blocks:
        yield lengths[block].astype("<i4").tobytes()
    end = 0
    for block in blocks:
        ends = end + np.cumsum(lengths[block], dtype="<i8")
        yield ((ends - lengths[block]) * itemsize).tobytes()
        end = int(ends[-1])
    for first in range(0, len(lengths) + 1, DOCUMENTS_PER_BLOCK):
        stop = min(first + DOCUMENTS_PER_BLOCK, len(lengths) + 1)
        yield np.arange(first, stop, dtype="<i8").tobytes()
