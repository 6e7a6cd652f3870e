"""Find documents in a token file with others between them: a split of an adopted pair."""

from __future__ import annotations

import bisect
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

_DOCUMENTS_PER_PLACE = 2**14
_DOCUMENTS_PER_BLOCK = 2**22


class Positions:
    """Start positions of documents counted in a row, without the text between them.

    Their offsets in the file do not tell, so the lengths are added up, once and when first asked.
    """

    def __init__(self, lengths: npt.NDArray[np.int32]) -> None:
        """Take the tokens of each document."""
        self._lengths = lengths

    @cached_property
    def _places(self) -> list[int]:
        """Position of every document whose number is a multiple of _DOCUMENTS_PER_PLACE."""
        places, position = [0], 0
        for first in range(0, len(self._lengths), _DOCUMENTS_PER_PLACE):
            part = self._lengths[first : first + _DOCUMENTS_PER_PLACE]
            position += int(part.sum(dtype=np.int64))
            places.append(position)
        return places

    def document_at(self, position: int) -> int:
        """Return the document that holds a raw token, which must exist."""
        first = (bisect.bisect_right(self._places, position) - 1) * _DOCUMENTS_PER_PLACE
        starts = self.starts(first, min(first + _DOCUMENTS_PER_PLACE, len(self._lengths)))
        return first + int(np.searchsorted(starts, position, side="right")) - 1

    def starts(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the positions at which documents [first, stop) start."""
        place = first // _DOCUMENTS_PER_PLACE
        lengths = self._lengths[place * _DOCUMENTS_PER_PLACE : stop]
        starts = self._places[place] + np.cumsum(lengths, dtype=np.int64) - lengths
        return starts[first - place * _DOCUMENTS_PER_PLACE :]


def gap_problem(
    lengths: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    dtype: np.dtype[Any],
    num_tokens: int,
) -> str | None:
    """Say what is wrong with the documents that an index lists; None if nothing is.

    Args:
        lengths: [documents] tokens of each.
        offsets: [documents] bytes before each in the file.
        dtype: of a token.
        num_tokens: of all of them, as the manifest says.
    """
    end, counted = 0, 0
    for first in range(0, len(lengths), _DOCUMENTS_PER_BLOCK):
        part = slice(first, first + _DOCUMENTS_PER_BLOCK)
        starts = np.array(offsets[part])
        ends = starts + lengths[part].astype(np.int64) * dtype.itemsize
        before = np.concatenate([[end], ends[:-1]])
        is_wrong = (lengths[part] < 1) | (starts < before) | (starts % dtype.itemsize != 0)
        if is_wrong.any():
            number = first + int(is_wrong.argmax())
            return f"document {number} is empty or starts before the one before it ends"
        end = int(ends[-1])
        counted += int(lengths[part].sum(dtype=np.int64))
    if counted == num_tokens:
        return None
    return f"its documents have {counted:,} tokens, the manifest says {num_tokens:,}"
