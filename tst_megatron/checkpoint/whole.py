"""Which checkpoints of a run are whole, and the one that it goes on from.

A checkpoint is a folder ``iter_NNNNNNN`` in Megatron's ``torch_dist`` format: shards
(``*.distcp``), then ``.metadata``, which says where in the shards each stored item is, then
``metadata.json``, then Megatron's tracker file beside the folder. A save that was cut off lacks the
later ones. Nothing here needs Megatron or a process group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.content.content import Findings, OnProgress, content_findings
from tst_megatron.checkpoint.content.facts import read_facts, step_problems
from tst_megatron.checkpoint.content.model import model_problems, weight_shapes
from tst_megatron.checkpoint.content.tables import shard_problems, table_problems
from tst_megatron.checkpoint.record import MANIFEST, RECORD, record_problems, write_record
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system.files import write_beside
from tst_megatron.system.paths import is_own_name, is_there
from tst_megatron.system.pickles.metadata_file import read_description
from tst_megatron.system.records import Damaged, parse_json, read_bytes, read_text

TRACKER = "latest_checkpointed_iteration.txt"
"""Megatron's file with the step of the newest checkpoint, which is the one it loads."""

WHAT_TO_GIVE = "Give a run folder, its checkpoints/, or one iter_ folder"
"""What every command takes that reads checkpoints."""
RELEASE = "release"
"""Name of the folder of imported weights, which are of no step."""


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
    # A link to nowhere is one too: what it led to may be the newest.
    found = [
        path
        for path in folder.iterdir()
        if _is_name(path.name) and (path.is_dir() or path.is_symlink())
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


def whole_before(folder: Path, step: int, has_manifest: bool) -> Iterator[Path]:
    """The checkpoints of earlier steps whose structure is whole, newest first."""
    for checkpoint in list_checkpoints(folder):
        if step_of(checkpoint) < step and not problems(checkpoint, has_manifest=has_manifest):
            yield checkpoint


# --- one checkpoint ------------------------------------------------------------------------------


def problems(checkpoint: Path, *, deep: bool = False, has_manifest: bool = False) -> list[str]:
    """Why a checkpoint is not whole, a sentence each: none if it is. As ``examine``.

    Raises:
        OSError: that cannot be known now, since the machine did not give what was to be read.
    """
    found = examine(checkpoint, deep=deep, has_manifest=has_manifest)
    if found.not_read is not None:
        raise found.not_read
    return found.problems


def examine(
    checkpoint: Path,
    *,
    deep: bool = False,
    has_manifest: bool = False,
    on_progress: OnProgress | None = None,
) -> Findings:
    """Find out whether a checkpoint is whole. Damage of any kind is a problem, and no error.

    Args:
        checkpoint: an ``iter_`` folder, or ``release``.
        deep: also read every stored item, compare it with its checksum and its values with each
            other, and every file's hash where Megatron wrote a manifest. Without it, what says
            where they are is read, and of them the step and the arguments.
        has_manifest: the run saves with ``verify-integrity``, so the manifest must be there.
        on_progress: told how far a deep check is, from this thread.
    """
    found = Findings()
    try:
        _examine(checkpoint, found, deep, has_manifest, on_progress)
    except Exception as error:
        # Damaged bytes raise whatever they happen to mean.
        found.add_unreadable("it", error)
    return found


def _examine(
    checkpoint: Path,
    found: Findings,
    deep: bool,
    has_manifest: bool,
    on_progress: OnProgress | None,
) -> None:
    step = _step_in_name(checkpoint)
    if checkpoint.is_symlink() and not checkpoint.exists():
        found.problems.append(f"is a link to {checkpoint.readlink()}, which is not there")
        return
    _examine_json(checkpoint, found, has_manifest)
    description = _description(checkpoint, found)
    places = found.places = description.storage_data if description is not None else {}
    if not (checkpoint / RECORD).exists():
        found.notes.append(f"its save wrote no {RECORD}: the small files have no hash")
    if description is not None:
        try:
            found.problems += table_problems(description)
            found.problems += shard_problems(checkpoint, places)
        except Exception as error:
            found.add_unreadable(".metadata", error, "is damaged")
    found.problems += record_problems(checkpoint, places if not found.problems else {}, step)
    if found.problems or description is None:
        return
    try:
        facts = read_facts(checkpoint, places)
    except ValueError as error:
        found.add(str(error), error)
        return
    if step is not None:
        found.problems += step_problems(facts, step)
    found.problems += model_problems(weight_shapes(description), facts)
    if found.problems or not deep:
        return
    content = content_findings(
        checkpoint, description, facts, _hashes(checkpoint), on_progress=on_progress
    )
    found.problems += content.problems
    found.notes += content.notes


def _step_in_name(checkpoint: Path) -> int | None:
    """The step of a folder's name, which may be a link's; None of imported weights."""
    for path in (checkpoint, checkpoint.resolve()):
        if _is_name(path.name):
            return step_of(path)
    return None


def _is_name(name: str) -> bool:
    return re.fullmatch(r"iter_[0-9]{7,}", name) is not None


def record_save(checkpoint: Path, places: Mapping[Any, Any] | None = None) -> None:
    """Write down what ``examine`` compares later; for one process, once a save is complete.

    Args:
        checkpoint: an ``iter_`` folder, or ``release``.
        places: torch's ``storage_data`` of it, if that was read already.

    Raises:
        OSError: nothing can be written.
    """
    places = read_description(checkpoint).storage_data if places is None else places
    write_record(checkpoint, places, _step_in_name(checkpoint))


def _examine_json(checkpoint: Path, found: Findings, has_manifest: bool) -> None:
    for name, is_needed in (("metadata.json", True), (MANIFEST, has_manifest)):
        if is_there(checkpoint / name):
            try:
                _read_json(checkpoint / name)
            except Damaged as error:
                found.add(f"{name} {error}", error)
        elif is_needed:
            found.problems.append(f"{name} is missing")
    if found.problems:
        return
    kind = _read_json(checkpoint / "metadata.json").get("sharded_backend")
    if kind != "torch_dist":
        found.problems.append(
            f"metadata.json names the format {kind!r}, and torch_dist is what a run saves"
        )
    if (checkpoint / MANIFEST).exists() and _hashes(checkpoint) is None:
        found.problems.append(f"{MANIFEST} holds no hashes of files")


def _hashes(checkpoint: Path) -> Any:
    """File -> SHA-256 as the manifest says; an empty block without one, None for other content."""
    if not (checkpoint / MANIFEST).exists():
        return {}
    files = _read_json(checkpoint / MANIFEST).get("files")
    if not isinstance(files, dict) or not files:
        return None
    is_plain = all(is_own_name(name) and isinstance(files[name], str) for name in files)
    return files if is_plain else None


def _read_json(path: Path) -> dict[str, Any]:
    """The block in a file; an empty one for a file that is not there or holds something else.

    Raises:
        Damaged: it cannot be read.
    """
    text = read_text(path)
    block = {} if text is None else parse_json(text)
    return block if isinstance(block, dict) else {}


def _description(checkpoint: Path, found: Findings) -> Any:
    """What ``.metadata`` says is stored, and where; None if it cannot be read."""
    if not (checkpoint / ".metadata").exists():
        found.problems.append(".metadata is missing")
        return None
    try:
        description = read_description(checkpoint)
        if not description.storage_data:
            found.problems.append(".metadata names nothing that is stored")
            return None
    except Exception as error:
        # A damaged pickle raises whatever its bytes happen to mean.
        found.add_unreadable(".metadata", error)
        return None
    return description


# --- where a run starts --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The step that a run goes on from, and what its owner should know of it."""

    step: int
    """Completed steps of the newest whole checkpoint, or 0."""
    notes: tuple[str, ...] = ()
    unreadable: frozenset[int] = frozenset()
    """Steps of newer ones whose files are there and cannot be read."""


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
