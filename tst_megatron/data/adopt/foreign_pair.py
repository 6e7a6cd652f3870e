"""Check, from its index alone, that a .bin/.idx pair of another tool can be read as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tst_megatron.data.tokens.format import DTYPES, HEADER, MAGIC, VERSION, bin_path, idx_path

OTHER_TYPES = {1: "uint8", 2: "int8", 3: "int16", 5: "int64", 6: "float64", 7: "float32"}
"""Megatron's codes of token types that are not read here."""
DOCUMENTS_PER_STEP = 1 << 22

COPY_AGAIN = "Copy both files again, or make the pair again."


def prefix_of(path: Path) -> Path:
    """Return the common path of a pair, which may be given with the ending of one file."""
    is_file = path.suffix in (".bin", ".idx") and not bin_path(path).exists()
    return path.with_suffix("") if is_file else path


def pair_problems(prefix: Path) -> list[str]:
    """List why the documents of a pair cannot be read.

    Args:
        prefix: common path of both files, without extension.
    """
    if not prefix.name:
        return [f"{prefix}: is a folder. Give the common path of .bin and .idx."]
    files = (bin_path(prefix), idx_path(prefix))
    if missing := [path for path in files if not path.is_file()]:
        fix = "Give the common path of .bin and .idx."
        return [f"{path}: no such file. {fix}" for path in missing]
    if files[1].stat().st_size < HEADER.size:
        return [f"{files[1]}: too short for an index of Megatron's. {COPY_AGAIN}"]
    index = np.memmap(files[1], dtype=np.uint8, mode="r")
    magic, version, code, num_sequences, num_index = HEADER.unpack(index[: HEADER.size].tobytes())
    if magic != MAGIC or version != VERSION:
        return [
            f"{files[1]}: begins with {magic!r} and version {version}, an index of Megatron's with "
            f"{MAGIC!r} and version {VERSION}. Only such pairs can be adopted: prepare the text."
        ]
    if code not in DTYPES:
        return [
            f"{files[1]}: tokens are {OTHER_TYPES.get(code, f'of the unknown type {code}')}, "
            "uint16 and int32 can be read. Make the pair again with one of these."
        ]
    if not num_sequences:
        return [f"{files[1]}: holds no document. Make the pair again."]
    num_bytes = HEADER.size + 12 * num_sequences + 8 * num_index
    if len(index) == num_bytes + num_sequences:
        return [
            f"{files[1]}: says of each sequence of which kind it is (multimodal), text alone can "
            "be trained on. Make the pair of the text alone."
        ]
    if len(index) != num_bytes:
        return [f"{files[1]}: {len(index):,} bytes, its header says {num_bytes:,}. {COPY_AGAIN}"]
    itemsize = DTYPES[code].itemsize
    offsets = HEADER.size + 4 * num_sequences
    numbers = index[offsets + 8 * num_sequences :].view("<i8")
    last_length = int(index[offsets - 4 : offsets].view("<i4")[0])
    last_offset = int(index[offsets + 8 * (num_sequences - 1) :][:8].view("<i8")[0])
    wanted = last_offset + last_length * itemsize
    problems = []
    if wanted != files[0].stat().st_size:
        problems.append(
            f"{files[0]}: {files[0].stat().st_size:,} bytes, its index describes {wanted:,}. "
            f"{COPY_AGAIN}"
        )
    return problems + _document_problems(files[1], numbers, num_sequences)


def _document_problems(path: Path, numbers: npt.NDArray[np.int64], num_sequences: int) -> list[str]:
    """Check that each document is one sequence, or none."""
    num_longer, before = 0, 0
    for first in range(0, len(numbers), DOCUMENTS_PER_STEP):
        part = np.array(numbers[first : first + DOCUMENTS_PER_STEP])
        steps = np.diff(part, prepend=before)
        if int(steps.min()) < 0 or (first == 0 and part[0] != 0):
            return [f"{path}: its list of documents is damaged. {COPY_AGAIN}"]
        num_longer += int((steps > 1).sum())
        before = int(part[-1])
    if before != num_sequences:
        return [
            f"{path}: its documents end at sequence {before:,} of {num_sequences:,}. {COPY_AGAIN}"
        ]
    if not num_longer:
        return []
    return [
        f"{path}: {num_longer:,} of {len(numbers) - 1:,} documents have several sequences, each "
        "must be one. Make the pair again without --split-sentences, one text for each document."
    ]
