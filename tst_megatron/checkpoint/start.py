"""Find the checkpoint that a run resumes from, or find that it never saved one.

A run whose checkpoints are all damaged must not start from step 0 in silence: that would throw it
away. A run that was killed before its first save was complete must.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tst_megatron.checkpoint.folder import (
    TRACKER,
    read_tracker,
    step_of,
    tracked_step,
    write_tracker,
)
from tst_megatron.checkpoint.whole import newest_whole
from tst_megatron.recipe.recipe import RecipeError

_NEVER_SAVED = "no save was ever completed: starting from step 0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The step that a run resumes from, and what its owner should know of it."""

    step: int
    """Completed steps of the newest complete checkpoint, or 0."""
    notes: tuple[str, ...] = ()
    """A line each, for the log."""
    unreadable: frozenset[int] = frozenset()
    """Steps of newer checkpoints whose files exist and cannot be read."""


def find_start(folder: Path, *, has_manifest: bool = False) -> Start:
    """Return the newest complete checkpoint, or step 0 if no save was ever completed.

    We must tell "never saved" from "everything damaged" even if the tracker is gone. First saves
    that are killed leave at most two folders, neither with ``metadata.json``: one folder is of the
    first save, and an asynchronous second save may have begun before the first was completed, but a
    third cannot. A start from step 0 deletes what it finds, so a chain of killed jobs leaves no
    more. More folders, or one with ``metadata.json``, mean that a save
    completed: refuse to start over.

    Changes nothing.

    Args:
        folder: a run's ``checkpoints/``.
        has_manifest: as for ``problems``.

    Raises:
        RecipeError: a save had completed, and no checkpoint is complete now.
    """
    found, skipped = newest_whole(folder, has_manifest=has_manifest)
    names = [f"{checkpoint.name}: {problem}" for checkpoint, problem in skipped]
    notes = [f"{name}; skipped" for name in names]
    tracker, is_tracked = read_tracker(folder), (folder / TRACKER).exists()
    said = f"said {tracker.text!r}" if is_tracked else "was missing"
    # Refuse to start over.
    if found is None and (is_tracked or _was_completed([path for path, _ in skipped])):
        says = said.replace("said", "says", 1) if is_tracked else "is missing"
        rule = (
            f"{folder}: a checkpoint was saved here ({TRACKER} {says}), and none is whole. Either "
            "put one back into this folder to go on, or use another --run-folder to start over"
        )
        raise RecipeError([rule, *names])
    if found is None:
        return Start(step=0, notes=(*notes, _NEVER_SAVED) if notes else ())
    step = step_of(found)
    if tracker.step != step:
        notes.append(f"{TRACKER} {said}: now {step}, the newest whole checkpoint")
    return Start(step=step, notes=tuple(notes))


def _was_completed(damaged: Sequence[Path]) -> bool:
    """Tell whether one of these saves must have completed before it was damaged."""
    if len(damaged) <= 1:
        return False
    return len(damaged) > 2 or any((path / "metadata.json").exists() for path in damaged)


def repair_tracker(folder: Path, *, has_manifest: bool = False) -> Start:
    """Find the start and point Megatron's tracker file at it; one process of a job does this.

    Without it, Megatron ends a run whose tracker is empty with status 0 after 0 steps, and fails on
    a tracker that names a damaged checkpoint.

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
