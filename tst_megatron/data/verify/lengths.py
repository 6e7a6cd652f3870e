"""The lengths of a split's documents: exact numbers from the index alone, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tst_megatron.data.tokens.format import idx_path
from tst_megatron.data.tokens.reader import IndexedReader

LONGEST_COUNTED = 1 << 20
"""Up to this length documents are counted, 8 bytes for each length. Each longer one takes 8 bytes:
2T tokens hold less than two million of them."""

DOCUMENTS_PER_STEP = 1 << 22


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of documents by length in tokens, BOS and EOD included."""

    counts: npt.NDArray[np.int64]
    """[LONGEST_COUNTED + 1] documents of each length."""
    longer: npt.NDArray[np.int64]
    """The lengths of all longer documents, ascending."""

    @property
    def num_documents(self) -> int:
        """All documents."""
        return int(self.counts.sum()) + len(self.longer)

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return int(self.counts @ np.arange(len(self.counts))) + int(self.longer.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(self.longer[-1]) if len(self.longer) else int(self.counts.nonzero()[0][-1])

    def percentile(self, percent: int) -> int:
        """The smallest length that at least so many percent of the documents do not exceed."""
        rank = max(1, -(-self.num_documents * percent // 100))
        cumulative = self.counts.cumsum()
        if rank > cumulative[-1]:
            return int(self.longer[rank - int(cumulative[-1]) - 1])
        return int(np.searchsorted(cumulative, rank))

    def fraction_below(self, length: int) -> float:
        """Share of the documents (0-1) that are shorter; ``length`` is one that is counted."""
        return int(self.counts[:length].sum()) / self.num_documents

    def bins(self, edges: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Documents and tokens of each bin [edge, next edge)."""
        numbers = np.arange(len(self.counts))
        for low, high in zip(edges, edges[1:], strict=False):
            counted = slice(min(low, len(self.counts)), high)
            longer = self.longer[np.searchsorted(self.longer, low) :]
            longer = longer[: np.searchsorted(longer, high)]
            documents = int(self.counts[counted].sum()) + len(longer)
            yield documents, int(self.counts[counted] @ numbers[counted]) + int(longer.sum())


def count_lengths(reader: IndexedReader) -> Lengths:
    """Read the lengths of all documents.

    Raises:
        ValueError: the index is damaged.
    """
    counts = np.zeros(LONGEST_COUNTED + 1, dtype=np.int64)
    longer = []
    for first in range(0, reader.num_documents, DOCUMENTS_PER_STEP):
        lengths = np.array(reader.document_lengths[first : first + DOCUMENTS_PER_STEP])
        if int(lengths.min()) < 1:
            raise ValueError(
                f"{idx_path(reader.prefix)}: document {first + int(lengths.argmin()):,} has "
                f"{int(lengths.min())} tokens, so the index is damaged. `data verify` says what "
                "else is."
            )
        is_longer = lengths > LONGEST_COUNTED
        longer.append(lengths[is_longer].astype(np.int64))
        counts += np.bincount(lengths[~is_longer], minlength=len(counts))
    return Lengths(counts, np.sort(np.concatenate([np.empty(0, dtype=np.int64), *longer])))


def octaves(lengths: Lengths, parts: int = 1) -> list[int]:
    """Edges of logarithmic bins that hold all documents, ``parts`` for each doubling."""
    shortest = int(lengths.counts.nonzero()[0][0]) if lengths.counts.any() else LONGEST_COUNTED
    first, last = shortest.bit_length() - 1, lengths.longest.bit_length()
    # Short documents have fewer lengths than bins.
    return sorted({round(2 ** (step / parts)) for step in range(parts * first, parts * last + 1)})
