"""Check before hours of work that a disk can be written to and has room."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path


def folder_to_write_to(path: Path) -> Path:
    """Return the nearest existing folder above a path; missing folders will be made in it.

    Args:
        path: absolute, without links.
    """
    return next(folder for folder in path.parents if folder.exists())


def check_writable(output: Path) -> None:
    """Refuse an output in a folder where nothing can be made: no permission, or no ordinary disk.

    The check makes a temporary file. No other answer is right on every file system.

    Args:
        output: absolute, without links; does not exist.

    Raises:
        ValueError: it cannot be made.
    """
    folder = folder_to_write_to(output)
    if not folder.is_dir():
        raise ValueError(f"{output}: {folder} is a file. Name a place in a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # A full disk is no fault of the name. It is reported when something is written.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        raise ValueError(
            f"{output}: nothing can be made in {folder} ({error.strerror}). Name another place, or "
            "get the permission to write there"
        ) from error


def check_room(output: Path, num_bytes: int, what: str) -> None:
    """Refuse an output that the disk has no room for.

    Args:
        output: absolute; it is made beside this name.
        num_bytes: bytes that it needs.
        what: it is, for the message.

    Raises:
        OSError: with ``ENOSPC``.
    """
    folder = folder_to_write_to(output)
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(
            errno.ENOSPC,
            f"{folder}: {free / 1e9:.1f} GB are free, {what} needs {num_bytes / 1e9:.1f} GB. Make "
            "room, or give an output folder on another disk.",
        )
