"""Task data on disk: one JSON Lines file per split, and a manifest with their sha256 sums.

DATA/manifest.json, DATA/<data set>/<name>/<split>.jsonl. Nothing here asks a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tst_megatron.hf.evaluate.definitions import TaskData
from tst_megatron.system.files import file_sha256

MANIFEST = "manifest.json"
FORMAT = 1
COMMAND = "tst-megatron evaluate-data"


def read_splits(*, files: Mapping[str, str], **_: Any) -> dict[str, Any]:
    """The data of one task, as lm-eval asks for it (``custom_dataset``).

    Every value keeps the type that JSON gives it; the JSON reader of ``datasets`` would take a
    column of dates for time stamps.

    Args:
        files: split to file.

    Raises:
        ValueError: a file has no item.
    """
    from datasets import Dataset

    splits = {}
    for split, name in files.items():
        # Not splitlines(), which also cuts at characters inside the text.
        with Path(name).open(encoding="utf-8") as file:
            items = [json.loads(line) for line in file if line.strip()]
        if not items:
            raise ValueError(f"{name}: holds no item")
        splits[split] = Dataset.from_list(items)
    return splits


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of task data; without one, no file is known.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return {"format": FORMAT, "files": {}}
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = manifest["format"], isinstance(manifest["files"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({error!r}). Fetch the data again") from error
    if known != (FORMAT, True):
        raise ValueError(f"{file}: format {known[0]}, but this version reads {FORMAT}")
    return manifest


def check_files(folder: Path, data: Iterable[TaskData], tasks: str) -> None:
    """Refuse a folder in which some file of the tasks is missing or damaged, all at once.

    Args:
        folder: the folder of task data.
        data: what the tasks read.
        tasks: ``--tasks`` as it was given, for the command that fetches what is missing.

    Raises:
        ValueError: with every missing and every damaged file.
    """
    listed = read_manifest(folder)["files"]
    missing, damaged = [], []
    for name in sorted({file for task in data for file in task.files.values()}):
        file = folder / name
        if name not in listed or not file.is_file():
            missing.append(f"  {name}" + (" (not in the manifest)" if file.is_file() else ""))
        elif file_sha256(file) != listed[name]["sha256"]:
            damaged.append(f"  {name}")
    problems = []
    if missing:
        problems += [f"{folder}: {len(missing)} files of task data are missing:", *missing]
    if damaged:
        problems += [
            f"{folder}: {len(damaged)} files are not those of {MANIFEST} (sha256); remove them:",
            *damaged,
        ]
    if problems:
        problems.append(
            f"Fetch them where there is a connection: {COMMAND} {folder} --tasks {tasks}"
        )
        raise ValueError("\n".join(problems))
