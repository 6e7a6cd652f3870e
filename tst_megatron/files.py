"""Writing files so that a killed process leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from pathlib import Path


def _beside(path: Path) -> Path:
    # Processes of two nodes may share a number.
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def write_beside(path: Path, text: str) -> None:
    """Replace a small file at once: written beside, flushed to disk, renamed."""
    beside = _beside(path)
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _replace(beside, path)


def copy_beside(source: Path, path: Path) -> None:
    """Copy a file so that it appears under its name whole: copied beside, flushed, renamed."""
    beside = _beside(path)
    with source.open("rb") as original, beside.open("wb") as copy:
        shutil.copyfileobj(original, copy)
        copy.flush()
        os.fsync(copy.fileno())
    _replace(beside, path)


def _replace(beside: Path, path: Path) -> None:
    beside.replace(path)
    # The rename itself is in the folder. Some network file systems cannot flush one.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)
