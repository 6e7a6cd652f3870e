"""Which checkpoints of a run are whole, and the one that it goes on from.

A checkpoint is a folder ``iter_NNNNNNN`` in Megatron's ``torch_dist`` format: shards
(``*.distcp``), then ``.metadata``, which says where in the shards each stored item is, then
``metadata.json``, then Megatron's tracker file beside the folder. A save that was cut off lacks the
later ones. Nothing here needs Megatron or a process group.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tst_megatron.files import write_beside
from tst_megatron.recipe import RecipeError
from tst_megatron.system.records import Damaged, parse_json, read_bytes, read_text
from tst_megatron.system.unpickling import read_description
from tst_megatron.training.checkpoint_content import MANIFEST, OnProgress, content_problems

TRACKER = "latest_checkpointed_iteration.txt"
"""Megatron's file with the step of the newest checkpoint, which is the one it loads."""


def step_of(checkpoint: Path) -> int:
    """Optimizer steps completed when a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("iter_"))


def checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step, whether it exists or not."""
    return folder / f"iter_{step:07d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or not, newest first."""
    if not folder.is_dir():
        return []
    found = [
        path
        for path in folder.iterdir()
        if re.fullmatch(r"iter_[0-9]{7,}", path.name) and path.is_dir()
    ]
    return sorted(found, key=step_of, reverse=True)


def newest_whole(
    folder: Path, *, has_manifest: bool = False
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint whose structure is whole, and each newer one with its first problem."""
    skipped: list[tuple[Path, str]] = []
    for checkpoint in list_checkpoints(folder):
        found = problems(checkpoint, has_manifest=has_manifest)
        if not found:
            return checkpoint, skipped
        skipped.append((checkpoint, found[0]))
    return None, skipped


# --- one checkpoint ------------------------------------------------------------------------------


def problems(
    checkpoint: Path,
    *,
    deep: bool = False,
    has_manifest: bool = False,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Why a checkpoint is not whole, a sentence each: none if it is.

    Args:
        checkpoint: an ``iter_`` folder.
        deep: also read every stored item and compare its checksum, and every file's hash where
            Megatron wrote a manifest. Without it, files are looked at and not read: milliseconds.
        has_manifest: the run saves with ``verify-integrity``, so the manifest must be there.
        on_progress: told how far a deep check is, from this thread.
    """
    found = _description_problems(checkpoint, has_manifest)
    items = _stored_items(checkpoint, found)
    found += _shard_problems(checkpoint, items.values())
    if found or not deep:
        return found
    hashes = _read_json(checkpoint / MANIFEST).get("files", {})
    named = [(index.fqn, item) for index, item in items.items()]
    return content_problems(checkpoint, named, hashes, on_progress=on_progress)


def _description_problems(checkpoint: Path, has_manifest: bool) -> list[str]:
    found = []
    for name, is_needed in (("metadata.json", True), (MANIFEST, has_manifest)):
        if os.path.lexists(checkpoint / name):
            try:
                block = _read_json(checkpoint / name)
                if name == MANIFEST and not isinstance(block.get("files"), dict):
                    found.append(f"{MANIFEST} names no files with their hashes")
            except Damaged as error:
                found.append(f"{name} {error}")
        elif is_needed:
            found.append(f"{name} is missing")
    if not found:
        kind = _read_json(checkpoint / "metadata.json").get("sharded_backend")
        if kind != "torch_dist":
            found.append(
                f"metadata.json names the format {kind!r}, and torch_dist is what a run saves"
            )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """The block in a file; an empty one for a file that is not there or holds something else.

    Raises:
        Damaged: it cannot be read.
    """
    text = read_text(path)
    block = {} if text is None else parse_json(text)
    return block if isinstance(block, dict) else {}


def _stored_items(checkpoint: Path, found: list[str]) -> Mapping[Any, Any]:
    """What ``.metadata`` says is stored, and where."""
    if not (checkpoint / ".metadata").exists():
        found.append(".metadata is missing")
        return {}
    try:
        items = read_description(checkpoint).storage_data
    except Exception as error:
        # A damaged pickle raises whatever its bytes happen to mean.
        found.append(f".metadata cannot be read ({type(error).__name__}: {error})")
        return {}
    if not items:
        found.append(".metadata names nothing that is stored")
    return items or {}


def _shard_problems(checkpoint: Path, items: Iterable[Any]) -> list[str]:
    """Shards that are not there or end before an item in them does."""
    ends: dict[str, int] = {}
    for item in items:
        ends[item.relative_path] = max(
            ends.get(item.relative_path, 0), item.offset + max(1, item.length)
        )
    found = []
    for name, end in sorted(ends.items()):
        if not (checkpoint / name).exists():
            found.append(f"{name} is missing")
        elif (size := (checkpoint / name).stat().st_size) < end:
            found.append(f"{name} has {size:,} bytes of {end:,}")
    return found


# --- where a run starts --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The step that a run goes on from, and what its owner should know of it."""

    step: int
    """Completed steps of the newest whole checkpoint, or 0."""
    notes: tuple[str, ...] = ()


def tracked_step(folder: Path) -> int | None:
    """The step in Megatron's tracker file; None when it is missing or holds anything else."""
    try:
        text = (read_text(folder / TRACKER) or "").strip()
    except Damaged:
        return None
    # Python converts no more digits than some thousands.
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def write_tracker(folder: Path, step: int) -> None:
    """Make Megatron load the checkpoint of a step."""
    write_beside(folder / TRACKER, str(step))


def find_start(folder: Path, *, has_manifest: bool = False) -> Start:
    """The newest whole checkpoint to go on from, or step 0 if no save was ever completed.

    Whether one was is seen without the tracker too. A job's first save that is cut off leaves one
    folder; an asynchronous second one may have begun before the first was completed, but a third
    cannot, and neither of the two has its ``metadata.json``. A start over takes away what it finds
    (``RunFolder.repair``), so a chain of jobs that are all killed in their first saves never has
    more. Whatever is beyond that was a save that had completed. Changes nothing.

    Args:
        folder: a run's ``checkpoints/``.
        has_manifest: as for ``problems``.

    Raises:
        RecipeError: a save had completed, and no checkpoint is whole. Starting over in silence
            would throw the run away.
    """
    found, skipped = newest_whole(folder, has_manifest=has_manifest)
    names = [f"{checkpoint.name}: {problem}" for checkpoint, problem in skipped]
    notes = [f"{name}; skipped" for name in names]
    tracker = folder / TRACKER
    said = f"said {_text_of(tracker)!r}" if tracker.exists() else "was missing"
    if found is None and (tracker.exists() or _was_completed([path for path, _ in skipped])):
        says = said.replace("said", "says", 1) if tracker.exists() else "is missing"
        rule = (
            f"{folder}: a checkpoint was saved here ({TRACKER} {says}), and none is whole. Either "
            "put one back into this folder to go on, or use another --run-folder to start over"
        )
        raise RecipeError([rule, *names])
    if found is None:
        return Start(step=0, notes=(*notes, _NEVER_SAVED) if notes else ())
    step = step_of(found)
    if tracked_step(folder) != step:
        notes.append(f"{TRACKER} {said}: now {step}, the newest whole checkpoint")
    return Start(step=step, notes=tuple(notes))


def _was_completed(damaged: Sequence[Path]) -> bool:
    """Whether one of these saves must have completed before it was damaged."""
    if len(damaged) <= 1:
        return False
    return len(damaged) > 2 or any((path / "metadata.json").exists() for path in damaged)


_NEVER_SAVED = "no save was ever completed: starting from step 0"


def repair_tracker(folder: Path, *, has_manifest: bool = False) -> Start:
    """Find the start and point Megatron's tracker file at it; one process of a job does this.

    Megatron ends a run whose tracker is empty with status 0 after 0 steps, and fails on one that
    names a damaged checkpoint.

    Args:
        folder: as for ``find_start``.
        has_manifest: as for ``problems``.

    Raises:
        RecipeError: as ``find_start`` does.
    """
    start = find_start(folder, has_manifest=has_manifest)
    if start.step and tracked_step(folder) != start.step:
        write_tracker(folder, start.step)
    return start


def _text_of(path: Path) -> str:
    try:
        return (read_bytes(path) or b"").decode("utf-8", errors="replace").strip()[:100]
    except Damaged as error:
        return str(error)
