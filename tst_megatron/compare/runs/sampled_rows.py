"""Read as many rows of a long ``metrics.jsonl`` as a curve needs: all evaluations, some steps.

A run of 100,000 steps has 50 MB of rows, and parsing them all takes seconds. Here the bytes are
searched for evaluations, which are all parsed. Of the steps, rows at even distances are parsed, and
every row of the first steps after a switch, where the loss falls fast.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tst_megatron.system.records import open_bytes
from tst_megatron.training.report.metrics_file import row_of

MOST_ROWS = 4000
"""Rows of steps at even distances; a file that has hardly more is parsed whole."""
DENSE_STEPS = 2000
"""Steps after a switch of which every row is parsed."""
_BLOCK_BYTES = 8 << 20
_VALIDATION = b'"validation"'
_LONGEST_ROW = 1 << 16
_END_BYTES = 1 << 13

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledRows:
    """Rows of a ``metrics.jsonl``, in the order of their steps, each step once."""

    steps: Sequence[Row]
    validation: Sequence[Row]
    is_whole: bool
    """Every row was parsed."""
    num_damaged: int
    """Lines that were parsed and hold no row. A torn last line is none of them, because a run may
    be writing it."""


def sample_rows(
    path: Path,
    *,
    switches: Sequence[int] = (),
    most_rows: int = MOST_ROWS,
    dense_steps: int = DENSE_STEPS,
) -> SampledRows | None:
    """Read all evaluations of a run, and enough of its steps for curves; None without a file.

    Args:
        path: of the ``metrics.jsonl``; may be written to at the moment.
        switches: steps completed at the switches of phases, after which every row is parsed.
        most_rows: rows of steps at even distances.
        dense_steps: steps of which every row is parsed after each switch.

    Raises:
        Damaged: it cannot be read.
    """
    file = open_bytes(path)
    if file is None:
        return None
    with file:
        size = os.fstat(file.fileno()).st_size
        head = os.pread(file.fileno(), 1 << 18, 0)
        row_bytes = max(1, len(head) // max(1, head.count(b"\n")))
        is_whole = size / row_bytes <= 1.5 * most_rows
        found = _Found()
        for block, start in _blocks(file, size):
            if is_whole:
                for line in block.split(b"\n"):
                    found.add(line)
            else:
                _evaluations(block, found)
                _evenly(block, start, size / most_rows, found)
        if not is_whole:
            for switch in switches:
                _after(file, size, switch, dense_steps, found)
    return SampledRows(
        steps=_in_order(found.steps),
        validation=_in_order(found.validation),
        is_whole=is_whole,
        num_damaged=len(found.damaged),
    )


class _Found:
    """Rows by their steps."""

    def __init__(self) -> None:
        self.steps: dict[int, Row] = {}
        self.validation: dict[int, Row] = {}
        self.damaged: set[bytes] = set()

    def add(self, line: bytes) -> None:
        row = row_of(line)
        if row is None and line.strip():
            self.damaged.add(line)
        elif row is None:
            return
        elif row["event"] == "step":
            self.steps[row["step"]] = row
        elif row["event"] == "validation":
            self.validation[row["step"]] = row


def _in_order(rows: dict[int, Row]) -> list[Row]:
    return [rows[step] for step in sorted(rows)]


def _blocks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield a file in blocks of whole lines, each with its first byte; a torn last line is left."""
    rest, start = b"", 0
    while len(data := file.read(min(_BLOCK_BYTES, size - start - len(rest)))) > 0:
        data = rest + data
        end = data.rfind(b"\n") + 1
        if end:
            yield data[:end], start
        rest, start = data[end:], start + end
    # A file that a person has written may lack the last end of line.
    if row_of(rest) is not None:
        yield rest + b"\n", start


def _line_at(block: bytes, place: int) -> bytes:
    return block[block.rfind(b"\n", 0, place) + 1 : block.find(b"\n", place)]


def _evaluations(block: bytes, found: _Found) -> None:
    place = block.find(_VALIDATION)
    while place >= 0:
        found.add(_line_at(block, place))
        place = block.find(_VALIDATION, block.find(b"\n", place))


def _evenly(block: bytes, start: int, distance: float, found: _Found) -> None:
    number = int(-(-start // distance))
    while (place := int(number * distance) - start) < len(block):
        if place >= 0:
            found.add(_line_at(block, place))
        number += 1
    if start == 0:
        found.add(_line_at(block, 0))
    # The newest step says how far the run is, and an evaluation may stand after it.
    for line in block[-_END_BYTES:].split(b"\n")[1:]:
        found.add(line)


def _after(file: BinaryIO, size: int, switch: int, num_steps: int, found: _Found) -> None:
    """Add the rows of the first steps after a switch; they are found by halving the file."""
    low, high = 0, size
    while high - low > _LONGEST_ROW:
        middle = (low + high) // 2
        step = _first_step(os.pread(file.fileno(), _LONGEST_ROW, middle))
        if step is not None and step <= switch:
            low = middle
        else:
            high = middle
    # The first line may begin before this place.
    low = max(0, low - _LONGEST_ROW)
    while data := os.pread(file.fileno(), 1 << 20, low):
        end = data.rfind(b"\n") + 1
        for line in data[data.find(b"\n") + 1 if low else 0 : end].split(b"\n"):
            row = row_of(line)
            if row is None or row["step"] <= switch or row["event"] != "step":
                continue
            if row["step"] > switch + num_steps:
                return
            found.steps[row["step"]] = row
        if not end or low + end >= size:
            return
        # This block's last end of line begins the next, whose first, empty line is passed over.
        low += end - 1


def _first_step(data: bytes) -> int | None:
    """Return the step of the first whole row of some bytes."""
    for line in data[data.find(b"\n") + 1 :].split(b"\n"):
        if (row := row_of(line)) is not None:
            return int(row["step"])
    return None
