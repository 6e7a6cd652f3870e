"""Look at names of files: does one exist, and is one from outside safe to use?"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any


def is_there(path: Path) -> bool:
    """Tell whether a path exists; a broken link does too.

    Raises:
        OSError: the answer is not known now. ``os.path.lexists`` would say no.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_own_name(name: Any) -> bool:
    """Tell whether a name that a file gives is of a file beside it, and not in another folder."""
    if type(name) is not str or "\0" in name:
        return False
    return name not in ("", "..") and PurePosixPath(name).name == name
