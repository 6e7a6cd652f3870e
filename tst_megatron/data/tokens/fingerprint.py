"""Identify a file by its content in the time of a start-up: a large file is only sampled."""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK_BYTES = 2**16
NUM_BLOCKS = 256
"""A file above NUM_BLOCKS * BLOCK_BYTES (16 MiB) is read in that many evenly spaced blocks."""


def fingerprint(path: Path) -> str:
    """Name a file's content by its size and up to 16 MiB of it.

    Another text, tokenizer or order of documents changes every block of a token file, so it is
    noticed for certain in practice. A few changed bytes in a large file are not: for that the
    manifest has the SHA-256 of each file (``recorded_files.verify_files``).

    Raises:
        OSError: the file cannot be read.
    """
    num_bytes = path.stat().st_size
    digest = hashlib.blake2b(str(num_bytes).encode(), digest_size=16)
    with path.open("rb") as file:
        if num_bytes <= NUM_BLOCKS * BLOCK_BYTES:
            digest.update(file.read())
        else:
            last = num_bytes - BLOCK_BYTES
            for block in range(NUM_BLOCKS):
                file.seek(last * block // (NUM_BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
