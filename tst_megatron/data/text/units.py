"""Cut the files of a text into units, each of which one worker prepares at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from tst_megatron.data.text.file_kinds import is_table, packing
from tst_megatron.data.text.inputs import Input
from tst_megatron.data.tokenizer.round_trip import FIRST_CHARACTERS

UNIT_BYTES = 1 << 26
"""About what one unit reads of a file that can be cut: a minute's work, redone after a kill."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A byte range of a file (or row groups of a table), prepared by one worker at a time."""

    file: Input
    start: int
    stop: int | None
    """The lines that start in bytes [start, stop), or these row groups; to the end where None."""
    num_bytes: int
    """Of the file, about: for progress."""
    is_whole_file: bool
    is_sampled: bool = True
    """True where its first documents are decoded again (`round_trip.py`)."""

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.file.path


def cut_into_units(inputs: Sequence[Input]) -> list[Unit]:
    """Cut the files that can be read from within; packed lines are one unit for each file.

    Raises:
        ValueError: with every .parquet file that cannot be read.
    """
    problems: list[str] = []
    units: list[Unit] = []
    for each in inputs:
        cuts = list(_cuts(each, problems))
        units += [Unit(each, *cut, is_whole_file=len(cuts) == 1) for cut in cuts]
    if problems:
        raise ValueError("\n".join(problems))
    return _sampled(units)


def _sampled(units: Sequence[Unit]) -> list[Unit]:
    """Decode documents again in some of many small units only, so that the share of time stays."""
    wanted = sum(min(unit.num_bytes, FIRST_CHARACTERS) for unit in units)
    allowed = max(sum(unit.num_bytes for unit in units) // 256, FIRST_CHARACTERS)
    stride = max(1, wanted // allowed)
    return [replace(unit, is_sampled=number % stride == 0) for number, unit in enumerate(units)]


def _cuts(each: Input, problems: list[str]) -> Iterator[tuple[int, int | None, int]]:
    if not each.num_bytes or packing(each.path):
        yield 0, None, each.num_bytes
    elif is_table(each.path):
        try:
            yield from _row_groups(each.path)
        except (pa.ArrowException, OSError) as error:
            problems.append(unreadable(each.path, error))
    else:
        for start in range(0, each.num_bytes, UNIT_BYTES):
            stop = min(start + UNIT_BYTES, each.num_bytes)
            yield start, stop, stop - start


def unreadable(path: Path, error: Exception) -> str:
    """Say that a .parquet file is none."""
    return f"{path}: cannot be read as Parquet ({error}). Copy or write it again."


def _row_groups(path: Path) -> Iterator[tuple[int, int, int]]:
    with parquet.ParquetFile(path) as file:
        metadata = file.metadata
        start, num_bytes = 0, 0
        for group in range(metadata.num_row_groups):
            columns = range(metadata.num_columns)
            group_bytes = sum(
                metadata.row_group(group).column(column).total_compressed_size for column in columns
            )
            if num_bytes and num_bytes + group_bytes > UNIT_BYTES:
                yield start, group, num_bytes
                start, num_bytes = group, 0
            num_bytes += group_bytes
        yield start, metadata.num_row_groups, num_bytes
