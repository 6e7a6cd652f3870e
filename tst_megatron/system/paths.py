"""Names of files that come from outside."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any


def is_own_name(name: Any) -> bool:
    """Whether a name that a file gives is of a file beside it, and leads to no other folder."""
    if type(name) is not str or "\0" in name:
        return False
    return name not in ("", "..") and PurePosixPath(name).name == name
