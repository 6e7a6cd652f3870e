"""The records of a run: which of them are damaged, and moving these aside before a start.

A record tells what was, and decides nothing: a start never fails for one. What cannot be read keeps
its content under another name, and is written anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tst_megatron.checkpoint.folder import TRACKER
from tst_megatron.checkpoint.run_files import RESOLVED
from tst_megatron.system.files import copy_beside
from tst_megatron.system.machine.errors import raise_passing
from tst_megatron.system.paths import is_there
from tst_megatron.system.records import Damaged, aside, move_aside, open_bytes, read_yaml
from tst_megatron.training.record import DROPPED
from tst_megatron.training.run.state import read_state
from tst_megatron.training.run.versions import read_layouts, write_layouts

VERSIONS = "versions.json"

if TYPE_CHECKING:
    from tst_megatron.training.run.folder import RunFolder


def read_resolved(path: Path) -> dict[str, Any]:
    """What a ``resolved.yaml`` says a run is (``identity``).

    Raises:
        Damaged: it is not there, or not whole.
    """
    # The last key that is written: without it, the end of the file is missing.
    run = read_yaml(path, {"data": dict, "phases": list, "training text": (list, str)})
    if run is None:
        raise Damaged("is missing")
    if not isinstance(run.get("tst"), dict | None):
        raise Damaged("says no 'tst' that fits")
    return run


def damaged_records(run: RunFolder) -> list[tuple[Path, str]]:
    """The records that a start would move aside, each with what is wrong with it."""
    readers: list[tuple[Path, Callable[[Path], Any]]] = [
        (run.resolved, read_resolved),
        (run.recipe, _read_recipe),
        (run.state_file, read_state),
        (run.versions, _read_versions),
        (run.metrics, _open),
        (run.metrics.with_name(DROPPED), _open),
        (run.checkpoints / TRACKER, _open),
        (run.tensorboard, _enter),
        (run.logs, _enter),
        (run.report, _enter),
    ]
    return [(path, what) for path, read in readers if (what := damage_of(path, read))]


def damage_of(path: Path, read: Callable[[Path], Any]) -> str | None:
    """What a reader says is wrong with a file.

    Raises:
        OSError: that cannot be known now.
    """
    try:
        read(path)
    except Damaged as error:
        raise_passing(error)
        return str(error)
    return None


def notes_of(found: list[tuple[Path, str]]) -> list[str]:
    """What a start would say of damaged records."""
    return [f"{path} {what}: a start moves it to {aside(path).name}" for path, what in found]


def move_damaged_aside(found: list[tuple[Path, str]]) -> list[str]:
    """Make place for the records of a start; the first rank does this, before the others go on.

    Returns:
        A line for each that was damaged.
    """
    notes = []
    for path, what in found:
        layouts = read_layouts(path)[0] if path.name == VERSIONS else []
        notes.append(f"{path} {what}: moved to {_keep_aside(path).name}")
        if layouts:
            write_layouts(path, layouts)
    return notes


def _keep_aside(path: Path) -> Path:
    if path.name != RESOLVED or not path.is_file():
        return move_aside(path)
    # It is replaced at once: a run without it is none, if this process is killed in between.
    new = aside(path)
    copy_beside(path, new)
    return new


def clear_log(log: Path) -> list[str]:
    """Make place for the log of a rank, which does this itself.

    Returns:
        A line, if something that is no file was there.
    """
    what = damage_of(log, _open)
    return [f"{log} {what}: moved to {move_aside(log).name}"] if what else []


def _open(path: Path) -> None:
    file = open_bytes(path)
    if file is not None:
        file.close()


def _read_recipe(path: Path) -> None:
    if read_yaml(path) == {}:
        raise Damaged("says nothing")


def _enter(path: Path) -> None:
    if is_there(path) and not path.is_dir():
        raise Damaged("is no folder" if path.exists() else f"is a link to {os.readlink(path)}")


def _read_versions(path: Path) -> None:
    if what := read_layouts(path)[1]:
        raise Damaged(what)
