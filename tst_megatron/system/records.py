"""Read the small files in which a program keeps its own facts, however damaged they are.

A file may be empty, cut, full of other bytes, nested so deep that a parser gives up, a folder, a
broken link, or unreadable. Every reader here raises one error for all of that: ``Damaged``.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from tst_megatron.system.paths import is_there

DAMAGED = ".damaged"
"""End of the name of a file that was moved aside."""

Kinds = Mapping[str, type | tuple[type, ...]]
"""Keys that a block must have, each with the types that its value may be of."""


class Damaged(ValueError):
    """A file exists and does not hold what it should; the message says why, without its name."""


def open_bytes(path: Path) -> BinaryIO | None:
    """Open a file for reading; None if there is none.

    Raises:
        Damaged: something is there that cannot be read as a file.
    """
    try:
        # Reading a pipe or a device might never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Damaged("is a folder" if path.is_dir() else "is no file")
        return path.open("rb")
    except FileNotFoundError:
        if path.is_symlink():
            raise Damaged(f"is a link to {os.readlink(path)}, which is not there") from None
        return None
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror or error})") from error


def read_bytes(path: Path) -> bytes | None:
    """Return the content of a file; None if there is none.

    Raises:
        Damaged: something is there that cannot be read as a file.
    """
    file = open_bytes(path)
    if file is None:
        return None
    with file:
        try:
            return file.read()
        except OSError as error:
            raise Damaged(f"cannot be read ({error.strerror or error})") from error


def read_text(path: Path) -> str | None:
    """Return the text of a file; None if there is none.

    Raises:
        Damaged: it cannot be read, or is not UTF-8.
    """
    data = read_bytes(path)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"is not UTF-8 at byte {error.start:,}") from error


def parse_json(text: str | bytes) -> Any:
    """Return the value that a JSON text spells.

    Raises:
        Damaged: it is not JSON, or is nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise Damaged("is nested too deep") from error
    except ValueError as error:
        raise Damaged(f"is not JSON ({error})") from error


def read_json(path: Path, kinds: Kinds | None = None) -> dict[str, Any] | None:
    """Return the block of a JSON file; None if there is no file.

    Args:
        path: of the file.
        kinds: keys that the block must have, with the types of their values.

    Raises:
        Damaged: it cannot be read, is no block, or lacks something.
    """
    text = read_text(path)
    return None if text is None else block_of(parse_json(text), kinds or {})


def read_yaml(path: Path, kinds: Kinds | None = None) -> dict[str, Any] | None:
    """Do as ``read_json`` with a YAML file. A tag in it can make only plain values."""
    text = read_text(path)
    if text is None:
        return None
    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise Damaged("is nested too deep") from error
    except Exception as error:
        # Beside its own errors: those of values that look like something else, such as a date.
        raise Damaged(f"is not YAML ({' '.join(str(error).split())})") from error
    return block_of(value, kinds or {})


def block_of(value: Any, kinds: Kinds) -> dict[str, Any]:
    """Check that a value is a block with the keys that it must have, and return it.

    Raises:
        Damaged: it is none, or lacks something.
    """
    if value is None:
        raise Damaged("is empty")
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Damaged("holds no block of named values")
    for key, kind in kinds.items():
        # Python counts a boolean as a number.
        is_wrong = isinstance(value.get(key), bool) and kind is not bool
        if key not in value or is_wrong or not isinstance(value[key], kind):
            raise Damaged(f"says no {key!r}" if key not in value else f"says no {key!r} that fits")
    return value


def aside(path: Path) -> Path:
    """Return the name that ``move_aside`` would give: ``NAME.damaged``, with a number if taken."""
    names = (f"{path.name}{DAMAGED}{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
    return next(new for name in names if not is_there(new := path.with_name(name)))


def move_aside(path: Path) -> Path:
    """Rename a damaged file, folder or link, so that a new one can be written and nothing is lost.

    Returns:
        What it is called now.
    """
    new = aside(path)
    path.rename(new)
    return new
