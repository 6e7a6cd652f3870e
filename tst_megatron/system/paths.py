"""Names of files: whether one is there, and those that come from outside."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any


def is_there(path: Path) -> bool:
    """Whether anything has a name, a link to nowhere too.

    Raises:
        OSError: that cannot be known now, which ``os.path.lexists`` takes for a no.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_own_name(name: Any) -> bool:
    """Whether a name that a file gives is of a file beside it, and leads to no other folder."""
    if type(name) is not str or "\0" in name:
        return False
    return name not in ("", "..") and PurePosixPath(name).name == name
