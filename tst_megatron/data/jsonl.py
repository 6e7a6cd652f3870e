"""Read the lines of JSONL files, plain or compressed, in batches that know where they come from."""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

BATCH_BYTES = 1 << 20
_ZSTD_READ_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class LineBatch:
    """Consecutive lines of one file, about `BATCH_BYTES` long."""

    file: str
    first_line: int
    """Counted from 1."""
    lines: list[bytes]


def check_inputs(inputs: Sequence[Path]) -> None:
    """Check what can be checked without reading.

    Raises:
        ValueError: no inputs, or a file name of an unknown kind.
        FileNotFoundError: an input is missing.
    """
    kinds = "Give .jsonl, .jsonl.gz or .jsonl.zst files with one JSON object per line."
    if not inputs:
        raise ValueError(f"inputs: no files. {kinds}")
    for path in inputs:
        if not path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            raise ValueError(f"{path}: unknown kind of file. {kinds}")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such input file. {kinds}")


def line_batches(
    inputs: Sequence[Path], advance: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[LineBatch]:
    """Yield all lines of all files in order; a batch never spans two files.

    Args:
        inputs: files that `check_inputs` accepts.
        advance: called with the bytes of the file (compressed, if it is) read since the last call.

    Raises:
        ValueError: a compressed file is damaged or cut short.
    """
    for path in inputs:
        with path.open("rb") as file:
            lines: list[bytes] = []
            first_line, num_bytes, position = 1, 0, 0
            for line in _lines(path, file):
                lines.append(line)
                num_bytes += len(line)
                if num_bytes >= BATCH_BYTES:
                    yield LineBatch(str(path), first_line, lines)
                    advance(file.tell() - position)
                    first_line, num_bytes, position = first_line + len(lines), 0, file.tell()
                    lines = []
            if lines:
                yield LineBatch(str(path), first_line, lines)
            advance(file.tell() - position)


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    try:
        if path.name.endswith(".gz"):
            yield from gzip.GzipFile(fileobj=file)
        elif path.name.endswith(".zst"):
            yield from _split_lines(_zstd_blocks(file))
        else:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path}: compressed file is damaged or cut short ({error}). Copy or compress it again."
        ) from error


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
