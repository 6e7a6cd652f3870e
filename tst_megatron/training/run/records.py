"""Find the damaged records of a run, and move them aside before a start.

A record tells what was, and decides nothing: a start never fails for one. A record that cannot be
read keeps its content under another name, and is written again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.folder import TRACKER
from tst_megatron.checkpoint.run_files import RESOLVED
from tst_megatron.system.files import copy_beside
from tst_megatron.system.machine.errors import raise_passing
from tst_megatron.system.paths import is_there
from tst_megatron.system.records import Damaged, aside, move_aside, open_bytes, read_yaml
from tst_megatron.training.report.facts import FACTS
from tst_megatron.training.report.metrics_file import DROPPED, EVALUATIONS
from tst_megatron.training.report.plan_file import read_plan
from tst_megatron.training.report.versions import read_layouts, write_layouts
from tst_megatron.training.run.folder import VERSIONS, RunFolder
from tst_megatron.training.run.state import read_state


def read_resolved(path: Path) -> dict[str, Any]:
    """Return the identity of a run, as its ``resolved.yaml`` says it.

    Raises:
        Damaged: the file is missing or incomplete.
    """
    # The last key that is written: without it, the end of the file is missing.
    run = read_yaml(path, {"data": dict, "phases": list, "training text": (list, str)})
    if run is None:
        raise Damaged("is missing")
    if not isinstance(run.get("tst"), dict | None):
        raise Damaged("says no 'tst' that fits")
    return run


def damaged_records(run: RunFolder) -> list[tuple[Path, str]]:
    """List the records that a start would move aside, each with what is wrong with it."""
    readers: list[tuple[Path, Callable[[Path], Any]]] = [
        (run.resolved, read_resolved),
        (run.recipe, _read_recipe),
        (run.state_file, read_state),
        (run.versions, _read_versions),
        (run.metrics, _open),
        (run.metrics.with_name(DROPPED), _open),
        (run.checkpoints / TRACKER, _open),
        (run.path / FACTS, _open),
        (run.plan, read_plan),
        (run.path / EVALUATIONS, _enter),
        (run.tensorboard, _enter),
        (run.logs, _enter),
        (run.report, _enter),
    ]
    return [(path, what) for path, read in readers if (what := damage_of(path, read))]


def damage_of(path: Path, read: Callable[[Path], Any]) -> str | None:
    """Return what a reader says is wrong with a file, or None.

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
    """Return what a start would say of damaged records, a line each."""
    return [f"{path} {what}: a start moves it to {aside(path).name}" for path, what in found]


def move_damaged_aside(found: list[tuple[Path, str]]) -> list[str]:
    """Make place for the records of a start. The first rank does this, before the others read.

    Returns:
        A line for each record that was damaged.
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
    # Copied, not moved: without this file the folder is no run, if this process is killed now.
    new = aside(path)
    copy_beside(path, new)
    return new


def clear_log(log: Path) -> list[str]:
    """Make place for the log of a rank. Each rank does this for its own.

    Returns:
        A line, if something other than a file was there.
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
