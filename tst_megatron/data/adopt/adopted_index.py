"""Write the index of a split of an adopted pair: some documents of a file, with gaps between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tst_megatron.data.tokens.format import DTYPES, HEADER, MAGIC, VERSION
from tst_megatron.data.tokens.reader import IndexedReader

DOCUMENTS_PER_STEP = 1 << 22


def write_chosen(
    path: Path, reader: IndexedReader, splits: npt.NDArray[np.uint8], number: int
) -> tuple[int, int]:
    """Write an index of Megatron's that lists the documents of one split.

    Args:
        path: the .idx to write.
        reader: of the pair, with all of its documents.
        splits: [documents] number of each one's split.
        number: of the split that is written.

    Returns:
        Its documents and its tokens.
    """
    num_documents = int((splits == number).sum())
    code = next(code for code, dtype in DTYPES.items() if dtype == reader.dtype)
    num_tokens = 0
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, code, num_documents, num_documents + 1))
        for part, chosen in _steps(splits, number):
            lengths = reader.document_lengths[part][chosen]
            num_tokens += int(lengths.sum(dtype=np.int64))
            file.write(lengths.astype("<i4").tobytes())
        for part, chosen in _steps(splits, number):
            offsets = reader.starts(part.start, part.stop)[chosen] * reader.dtype.itemsize
            file.write(offsets.astype("<i8").tobytes())
        for first in range(0, num_documents + 1, DOCUMENTS_PER_STEP):
            stop = min(first + DOCUMENTS_PER_STEP, num_documents + 1)
            file.write(np.arange(first, stop, dtype="<i8").tobytes())
    return num_documents, num_tokens


def _steps(
    splits: npt.NDArray[np.uint8], number: int
) -> Iterator[tuple[slice, npt.NDArray[np.bool_]]]:
    """Yield some documents at a time, with a mask of those that are of the split."""
    for first in range(0, len(splits), DOCUMENTS_PER_STEP):
        part = slice(first, first + DOCUMENTS_PER_STEP)
        yield part, splits[part] == number
