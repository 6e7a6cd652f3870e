"""Fetch task data on a machine that has a connection, in the form that ``local_data`` reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tst_megatron.hf.evaluate.definitions import DataSet, TaskData, data_of, task_names
from tst_megatron.hf.evaluate.hub import SECONDS, hub_problem
from tst_megatron.hf.evaluate.local_data import FORMAT, MANIFEST, read_manifest
from tst_megatron.system.files import beside, file_sha256, flush_folder, write_beside
from tst_megatron.system.packages import package_version


def download(tasks: str, folder: Path, *, on_progress: Callable[[str], None]) -> int:
    """Write the data that tasks read, and the manifest; complete files are kept.

    Each data set is fetched from the Hugging Face hub as lm-eval would fetch it, at the newest
    commit, which the manifest keeps.

    Args:
        tasks: as for ``tst-megatron evaluate --tasks``.
        folder: made if it is missing.
        on_progress: told each file in a short sentence.

    Returns:
        Files written.

    Raises:
        ValueError: an unknown task, or one whose data is no file.
        ConnectionError: the hub does not answer, or does not give a data set.
    """
    data = data_of(task_names(tasks))
    manifest = read_manifest(folder)
    wanted = {
        source: missing
        for source, splits in _by_data_set(data).items()
        if (missing := [each for each in splits if not _is_whole(folder, source, each, manifest)])
    }
    if wanted and (problem := hub_problem()):
        raise ConnectionError(
            f"the data of --tasks {tasks} cannot be fetched here: {problem}. Start this command "
            f"where there is a connection, copy {folder} to the machine that has none, and "
            f"evaluate there with --data {folder}"
        )
    versions = {name: package_version(name) for name in ("lm-eval", "datasets")}
    num_written = 0
    for source, splits in wanted.items():
        revision, loaded = _fetch(source)
        for split in splits:
            name = f"{source.folder}/{split}.jsonl"
            facts = _write_items(folder / name, loaded[split])
            manifest["files"][name] = {
                **{"data_set": source.path, "name": source.name, "split": split},
                **{"revision": revision, "versions": versions, **facts},
            }
            # After each file, so that a fetch that was cut off continues from here.
            write_beside(folder / MANIFEST, json.dumps({**manifest, "format": FORMAT}, indent=1))
            on_progress(f"{name}: {facts['num_items']} items")
            num_written += 1
    return num_written


def _by_data_set(data: Iterable[TaskData]) -> dict[DataSet, list[str]]:
    splits: dict[DataSet, list[str]] = {}
    for task in data:
        known = splits.setdefault(task.data, [])
        known += [split for split in task.splits if split not in known]
    return splits


def _is_whole(folder: Path, source: DataSet, split: str, manifest: dict[str, Any]) -> bool:
    name = f"{source.folder}/{split}.jsonl"
    known = manifest["files"].get(name)
    file = folder / name
    return bool(known) and file.is_file() and file_sha256(file) == known["sha256"]


def _fetch(source: DataSet) -> tuple[str, Any]:
    """A data set at the hub's newest commit, and that commit."""
    import datasets
    from huggingface_hub import HfApi

    arguments = dict(source.arguments)
    try:
        wanted = arguments.pop("revision", None)
        revision = HfApi().dataset_info(source.path, revision=wanted, timeout=SECONDS).sha
        return str(revision), datasets.load_dataset(
            source.path, source.name, revision=revision, **arguments
        )
    except Exception as error:
        # Whatever the hub, its client or `datasets` raise: the user must know which data set.
        raise ConnectionError(
            f"{source.path} ({source.name or 'default'}): not fetched from the Hugging Face hub: "
            f"{type(error).__name__}: {error}"
        ) from error


def _write_items(file: Path, items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write one file so that it appears complete; return its sha256 sum and number of items."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new, digest, num_items = beside(file), hashlib.sha256(), 0
    try:
        with new.open("wb") as opened:
            for item in items:
                line = (json.dumps(item, ensure_ascii=False) + "\n").encode()
                digest.update(line)
                opened.write(line)
                num_items += 1
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
    flush_folder(file.parent)
    return {"sha256": digest.hexdigest(), "num_items": num_items}
