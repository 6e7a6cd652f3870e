"""Open what a person has named: run folders, TensorBoard folders and CSV files."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tst_megatron.checkpoint.run_files import RESOLVED, is_run, run_of
from tst_megatron.compare.results import RecordedRun
from tst_megatron.compare.runs.csv_file import read_csv
from tst_megatron.compare.runs.event_files import PATTERN, event_files
from tst_megatron.compare.runs.run_folder import THINNED, read_run_folder
from tst_megatron.compare.runs.tensorboard import read_tensorboard
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.training.report.facts import FACTS

CSV_ENDS = (".csv", ".tsv")


def open_runs(paths: Sequence[Path]) -> tuple[list[RecordedRun], list[str]]:
    """Read all runs; their ``arm`` is empty yet.

    Returns:
        The runs in the order given, each with a name of its own; and sentences about records that
        are damaged, or do not say everything.

    Raises:
        RecipeError: runs that cannot be read, a sentence each.
    """
    notes: list[str] = []
    problems, runs = [], []
    seen: dict[str, Path] = {}
    for path in paths:
        place = os.path.realpath(_place(path))
        if place in seen:
            problems.append(f"{path}: is the same run as {seen[place]}. Name each run once")
            continue
        seen[place] = path
        try:
            runs.append(_open(path, notes))
        except ValueError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror or error})")
    if problems:
        raise RecipeError(problems)
    if not runs:
        raise RecipeError(["no run was named. Name run folders, TensorBoard folders or CSV files"])
    named = _with_own_names(runs)
    if old := [run.name for run in named if run.kind == "run folder" and "stream" not in run.facts]:
        notes.append(
            f"{', '.join(old)}: no {FACTS} was kept, as earlier versions did not, so that held-out "
            f"text and the order of training text are known only as far as {RESOLVED} says them"
        )
    if long := [run.name for run in named if run.facts.get(THINNED)]:
        notes.append(
            f"{', '.join(long)}: steps at even distances were read, and each stands for those "
            "before it; hours are estimated so"
        )
    return named, notes


def _place(path: Path) -> Path:
    """Return the run folder that a path leads to, also from its TensorBoard folder."""
    own = Path(os.path.abspath(path))
    return own.parent if own.name == "tensorboard" and is_run(own.parent) else run_of(path)


def _open(path: Path, notes: list[str]) -> RecordedRun:
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    run = _place(path)
    if is_run(run):
        return read_run_folder(run, notes)
    if not path.is_dir():
        if path.suffix.lower() in CSV_ENDS:
            return read_csv(path, notes)
        raise ValueError(
            f"{path}: is a file, and no CSV file. Name a run folder, a TensorBoard folder or a "
            "file that ends in .csv or .tsv"
        )
    if event_files(path):
        return read_tensorboard(path, notes)
    if not any(path.iterdir()):
        raise ValueError(f"{path}: is an empty folder, and so no run")
    below = sorted({str(file.parent) for file in path.glob(f"*/{PATTERN}")})
    runs = sorted(str(folder) for folder in path.iterdir() if folder.is_dir() and is_run(folder))
    found = [*runs, *below]
    hint = f". Did you mean {', '.join(found[:3])}?" if found else ""
    raise ValueError(
        f"{path}: is no run, because it has neither resolved.yaml nor TensorBoard's event files"
        f"{hint}"
    )


def _with_own_names(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Give each run its folder's name, and as much of the path before it as it takes."""
    parts = [run.path.resolve().parts for run in runs]
    length = 1
    names = [run.name for run in runs]
    while len(set(names)) < len(names):
        length += 1
        counted = Counter(names)
        names = [
            name if counted[name] == 1 else "/".join((*path[-length:-1], run.name))
            for name, path, run in zip(names, parts, runs, strict=True)
        ]
        if length > max(map(len, parts)):
            # Two kinds of record may share a path: only numbers tell them apart.
            names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]
