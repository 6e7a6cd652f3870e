"""Reading all that a checkpoint stores, and comparing it with the checksums stored beside it."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tst_megatron.system.torch_archive import archive_problem

MANIFEST = "integrity.json"
"""Hashes of all files of a checkpoint, written last under Megatron's ``verify-integrity``."""

NUM_THREADS = min(8, os.cpu_count() or 1)
"""Items read at once; checksums are taken outside Python's lock."""

READ_BYTES = 1 << 20

OnProgress = Callable[[int, int], None]
"""Told the bytes read so far and the bytes to read."""


def content_problems(
    checkpoint: Path,
    items: Sequence[tuple[str, Any]],
    hashes: Mapping[str, str],
    *,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """What of a checkpoint is not what was saved, a sentence each.

    Args:
        checkpoint: an ``iter_`` folder whose structure is whole.
        items: name of every stored item, and torch's record of where it is.
        hashes: file -> SHA-256, where a manifest exists.
        on_progress: told how far it is, from this thread.
    """
    jobs: list[tuple[int, Callable[[], str | None]]] = [
        (item.length, functools.partial(_item_problem, checkpoint, name, item))
        for name, item in items
    ]
    for name, digest in hashes.items():
        size = (checkpoint / name).stat().st_size if (checkpoint / name).exists() else 0
        jobs.append((size, functools.partial(_hash_problem, checkpoint / name, digest)))
    done, total = 0, sum(num_bytes for num_bytes, _ in jobs)
    found = []
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        sizes = {threads.submit(check): num_bytes for num_bytes, check in jobs}
        for future in as_completed(sizes):
            done += sizes[future]
            if problem := future.result():
                found.append(problem)
            if on_progress is not None:
                on_progress(done, total)
    return sorted(found)


def _item_problem(checkpoint: Path, name: str, item: Any) -> str | None:
    """Compare a stored item, which torch.save wrote as a zip archive, with its checksums."""
    try:
        with (checkpoint / item.relative_path).open("rb") as shard:
            part = io.BufferedReader(_Part(shard, item.offset, item.length), READ_BYTES)
            found = archive_problem(part)
    except Exception as error:
        # A damaged header raises whatever its bytes happen to mean.
        found = str(error).partition("\n")[0] or type(error).__name__
    return f"{item.relative_path}: {name} is damaged ({found})" if found else None


def _hash_problem(path: Path, digest: str) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == digest:
            return None
    return f"{path.name} is not what {MANIFEST} says it was when it was saved"


class _Part(io.RawIOBase):
    """A stretch of a file, as a file: an item may be larger than memory."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if start + offset < 0:
            raise ValueError("before its start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._length - self._position))
        self._file.seek(self._offset + self._position)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
