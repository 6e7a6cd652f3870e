"""The grammar of a folder of checkpoints: how they are named, and which of them its tracker names.

::

    checkpoints/
      latest_checkpointed_iteration.txt    "12": the tracker, which says which one Megatron loads
      iter_0000008/                        saved after optimizer step 8
      iter_0000012/
    imported/
      latest_checkpointed_iteration.txt    "release"
      release/                             weights of no step, as `tst-megatron import` writes them

Nothing here looks into a checkpoint: ``whole.py`` does. No torch is imported, because
`tst-megatron status` must answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tst_megatron.system.files import write_beside
from tst_megatron.system.records import Damaged, read_bytes

TRACKER = "latest_checkpointed_iteration.txt"
"""Megatron's file with the step of the newest checkpoint, which is the one it loads."""

RELEASE = "release"
"""Megatron's name, for folder and tracker, of a checkpoint that is of no step: an imported one."""

WHAT_TO_GIVE = "Give a run folder, its checkpoints/, or one iter_ folder"
"""The sentence for every command that reads checkpoints: what it takes."""

_NAME = re.compile(r"iter_([0-9]{7,})")
# Python converts no more digits than some thousands.
_STEP = re.compile(r"[0-9]{1,18}")


# --- names ---------------------------------------------------------------------------------------


def checkpoint_of(folder: Path, step: int) -> Path:
    """Name the checkpoint of a step, which need not exist: 12 is ``iter_0000012``."""
    return folder / f"iter_{step:07d}"


def is_name_of_a_step(name: str) -> bool:
    """Tell whether a folder of this name is the checkpoint of a step."""
    return _NAME.fullmatch(name) is not None


def step_of(checkpoint: Path) -> int:
    """Return the optimizer steps that were completed when a checkpoint was saved.

    Args:
        checkpoint: as ``list_checkpoints`` or ``checkpoint_of`` names it.
    """
    return int(checkpoint.name.removeprefix("iter_"))


def step_in_name(checkpoint: Path) -> int | None:
    """Return the step in a folder's name, or None for imported weights and all other names.

    The name itself counts first. Where it has no step, the name of the folder counts that it leads
    to: for a link ``newest`` to ``iter_0000012``, and for ``.`` inside of it.
    """
    for name in (checkpoint.name, checkpoint.resolve().name):
        if match := _NAME.fullmatch(name):
            return int(match[1])
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, newest first, whether they are complete or not.

    A link to nowhere is listed too: what it led to may have been the newest.
    """
    if not folder.is_dir():
        return []
    found = [
        path
        for path in folder.iterdir()
        if is_name_of_a_step(path.name) and (path.is_dir() or path.is_symlink())
    ]
    return sorted(found, key=step_of, reverse=True)


# --- the tracker ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracker:
    """The content of a tracker file."""

    step: int | None = None
    """The step that it names; None where it is missing, damaged or holds anything else."""
    text: str | None = None
    """Its content without white space around, cut after 100 characters; the reason where it cannot
    be read; None where it is missing."""
    damage: str | None = None
    """The reason, where it cannot be read as text."""


def read_tracker(folder: Path) -> Tracker:
    """Read the tracker of a folder of checkpoints. No content of it is an error here.

    White space around a number is ignored, as Megatron ignores it; a kill while the file is written
    may leave it empty. What a tracker without a step means is left to the caller. A start of a run
    needs none, because it looks for the newest complete checkpoint. An export refuses it, because
    it must not guess which checkpoint its user means.
    """
    try:
        data = read_bytes(folder / TRACKER)
    except Damaged as error:
        return Tracker(text=str(error)[:100], damage=str(error))
    if data is None:
        return Tracker()
    text = data.decode("utf-8", errors="replace").strip()
    step = int(text) if _STEP.fullmatch(text) else None
    return Tracker(step=step, text=text[:100], damage=_not_utf8(data))


def _not_utf8(data: bytes) -> str | None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not UTF-8 at byte {error.start:,}"
    return None


def tracked_step(folder: Path) -> int | None:
    """Return the step that the tracker of a folder names, or None; see ``read_tracker``."""
    return read_tracker(folder).step


def write_tracker(folder: Path, step: int) -> None:
    """Make Megatron load the checkpoint of a step."""
    write_beside(folder / TRACKER, str(step))


# --- the checkpoint that a user means ------------------------------------------------------------


def find_checkpoint(checkpoint: Path, iteration: int | None = None) -> Path:
    """Return the checkpoint that a path and an iteration stand for.

    Args:
        checkpoint: a run folder, a folder of checkpoints with Megatron's tracker file, or one
            ``iter_`` folder.
        iteration: in optimizer steps; the tracker's when not given. An imported checkpoint is of
            step 0 here.

    Raises:
        ValueError: there is no such checkpoint; the message lists those that exist.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: no such folder. {WHAT_TO_GIVE}")
    own = _iteration_of(checkpoint)
    if own is not None and iteration in (None, own):
        return checkpoint
    if own is not None:
        raise ValueError(
            f"{checkpoint} is the checkpoint of iteration {own}, but iteration {iteration} was "
            f"asked for. Give {checkpoint.parent} instead, or leave --iteration out."
        )
    existing = {
        number: path for path in checkpoint.iterdir() if (number := _iteration_of(path)) is not None
    }
    if not existing and (checkpoint / "checkpoints").is_dir():
        return find_checkpoint(checkpoint / "checkpoints", iteration)
    if not existing:
        raise ValueError(
            f"{checkpoint}: no checkpoint there (no iter_NNNNNNN folder). {WHAT_TO_GIVE}"
        )
    wanted = _tracked(checkpoint, existing) if iteration is None else iteration
    if wanted not in existing:
        raise ValueError(
            f"{checkpoint}: no checkpoint of iteration {wanted}. "
            f"Iterations there: {_listed(existing)}."
        )
    by_name = checkpoint_of(checkpoint, wanted)
    return by_name if by_name.is_dir() else existing[wanted]


def _iteration_of(checkpoint: Path) -> int | None:
    if not checkpoint.is_dir():
        return None
    step = step_in_name(checkpoint)
    if step is not None:
        return step
    # A run may be called so too.
    is_import = checkpoint.resolve().name == RELEASE and (checkpoint / ".metadata").exists()
    return 0 if is_import else None


def _tracked(folder: Path, existing: Iterable[int]) -> int:
    tracker = read_tracker(folder)
    if tracker.damage is not None:
        raise ValueError(
            f"{folder / TRACKER}: {tracker.damage}. Name an iteration; those there: "
            f"{_listed(existing)}."
        )
    if tracker.text == RELEASE and (folder / RELEASE).is_dir():
        return 0
    if tracker.step is None:
        holds = "does not exist" if tracker.text is None else f"holds {tracker.text!r}"
        raise ValueError(
            f"{folder / TRACKER}: must hold the newest iteration as a number, but {holds}. "
            f"Name an iteration; those there: {_listed(existing)}."
        )
    return tracker.step


def _listed(iterations: Iterable[int]) -> str:
    return ", ".join(str(iteration) for iteration in sorted(iterations))
