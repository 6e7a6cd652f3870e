"""Read lines of files, plain or packed, in batches that know where they come from."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import zstandard

from tst_megatron.data.text.file_kinds import packing
from tst_megatron.data.text.units import Unit

BATCH_BYTES = 1 << 20
# A text that repeats itself is a thousand times as long as its packed form.
_ZSTD_READ_BYTES = 1 << 14


@dataclass(frozen=True, slots=True)
class LineBatch:
    """Consecutive lines of one unit, about `BATCH_BYTES` long."""

    first_line: int
    """Counted from 1 in the unit."""
    lines: list[bytes]


def line_batches(
    unit: Unit, advance: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[LineBatch]:
    """Yield the lines of a unit in order.

    Args:
        unit: of a file of lines.
        advance: called with the bytes of the file (packed, if it is) read since the last call.

    Raises:
        ValueError: a packed file is damaged or cut short.
    """
    with unit.path.open("rb") as file:
        lines: list[bytes] = []
        first_line, num_bytes, position = 1, 0, unit.start
        for line in _lines(unit, file):
            lines.append(line)
            num_bytes += len(line)
            if num_bytes >= BATCH_BYTES:
                yield LineBatch(first_line, lines)
                advance(file.tell() - position)
                first_line, num_bytes, position = first_line + len(lines), 0, file.tell()
                lines = []
        if lines:
            yield LineBatch(first_line, lines)
        advance(file.tell() - position)


def lines_before(unit: Unit) -> int:
    """Lines of the file that start before a unit does."""
    if unit.start == 0:
        return 0
    num_lines, left = 0, unit.start
    with unit.path.open("rb") as file:
        while block := file.read(min(left, BATCH_BYTES)):
            num_lines += block.count(b"\n")
            left -= len(block)
        # The line that the unit's first byte is inside of belongs to the unit before.
        file.seek(unit.start - 1)
        return num_lines + (file.read(1) != b"\n")


def _lines(unit: Unit, file: IO[bytes]) -> Iterator[bytes]:
    try:
        how = packing(unit.path)
        if how == "gz":
            yield from gzip.GzipFile(fileobj=file)
        elif how == "zst":
            yield from _split_lines(_zstd_blocks(file))
        else:
            yield from _lines_from(unit, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{unit.path}: packed file is damaged or cut short ({error}). Copy or pack it again."
        ) from error


def _lines_from(unit: Unit, file: IO[bytes]) -> Iterator[bytes]:
    """The lines that start inside the unit."""
    if unit.start:
        file.seek(unit.start - 1)
        file.readline()
    while (unit.stop is None or file.tell() < unit.stop) and (line := file.readline()):
        yield line


def _zstd_blocks(file: IO[bytes]) -> Iterator[bytes]:
    # Not zstandard's stream_reader: it takes the end of a file cut short for the end of the text.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = None
    try:
        while data := file.read(_ZSTD_READ_BYTES):
            while data:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
    if frame is not None:
        raise EOFError("the last frame has no end")


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for block in blocks:
        *lines, rest = block.split(b"\n")
        for line in lines:
            yield b"".join((*parts, line))
            parts = []
        parts.append(rest)
    if last := b"".join(parts):
        yield last
