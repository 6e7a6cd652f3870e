"""Decide which checkpoints a run keeps, and delete the others.

A run keeps the last N, one every M steps, and always those that would be expensive to make again:
the last superposition step, from which other recovery phases can start, and the step from which the
WSD decay starts, from which a run can be made longer. Example: with N = 2, M = 100, saves every 20
steps and the switch at 60, the run keeps 60, 100, 120 and 140 after step 140.

Nothing is deleted before a newer checkpoint is known to be complete.
"""

from __future__ import annotations

import shutil
import stat
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.folder import checkpoint_of, list_checkpoints, step_of
from tst_megatron.checkpoint.record import RECORD
from tst_megatron.checkpoint.whole import examine, record_save
from tst_megatron.system.paths import is_there

_DELETED = ".deleted-"
"""Start of the name that a checkpoint has while it is being deleted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepingRule:
    """The rule by which checkpoints stay; without one, all of them."""

    keep_last: int | None = None
    """Keep the newest N complete ones. Default: all, or 1 where ``keep_every`` is given."""
    keep_every: int | None = None
    """Keep those of steps that this divides; Megatron's ``save-retain-interval``."""
    always: frozenset[int] = frozenset()
    """Keep those of these steps."""

    def num_last(self) -> int | None:
        """Return N, or None if every checkpoint stays."""
        return 1 if self.keep_last is None and self.keep_every else self.keep_last

    def names(self, step: int) -> bool:
        """Tell whether the checkpoint of a step stays whatever comes later."""
        return step in self.always or bool(self.keep_every and step % self.keep_every == 0)


def always_kept(args: Any, *, switch_step: int) -> set[int]:
    """Return the steps whose checkpoints are saved and kept whatever the intervals say.

    Args:
        args: Megatron's arguments.
        switch_step: the last superposition step, or 0.
    """
    steps = {switch_step}
    if args.lr_decay_style == "WSD" and args.lr_wsd_decay_iters:
        steps.add((args.lr_decay_iters or args.train_iters) - args.lr_wsd_decay_iters)
    # The last step is saved in any case.
    return {step for step in steps if 0 < step < args.train_iters}


def steps_to_delete(steps: Collection[int], whole: Collection[int], rule: KeepingRule) -> list[int]:
    """List the steps whose checkpoints are to be deleted, oldest first.

    A checkpoint not known to be complete is deleted only if a newer complete one exists, and never
    counts toward N.

    Args:
        steps: of all checkpoints that exist.
        whole: of those known to be complete.
        rule: names those that stay.
    """
    num_last = rule.num_last()
    if num_last is None or not whole:
        return []
    last = sorted(whole)[-num_last:]
    return [
        step
        for step in sorted(steps)
        if step < max(whole) and step not in last and not rule.names(step)
    ]


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint so that a kill in the middle leaves no half of one under its name.

    It is renamed when this returns. Its files are deleted in a thread: thousands of them on a
    parallel file system take minutes, and all ranks would wait. Of a link only the link is deleted.
    """
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    aside = checkpoint.with_name(_DELETED + checkpoint.name)
    if aside.exists():
        shutil.rmtree(aside)
    checkpoint.rename(aside)
    threading.Thread(target=shutil.rmtree, args=(aside, True), name=aside.name).start()


def finish_deleting() -> None:
    """Wait until ``delete`` has deleted all files; then the run folder may be released."""
    for thread in threading.enumerate():
        if thread.name.startswith(_DELETED):
            thread.join()


def _shares_files(checkpoint: Path) -> bool:
    """Tell whether a file of a checkpoint has a name elsewhere too, as a branch gives it one."""
    files = (path.lstat() for path in checkpoint.rglob("*"))
    return any(stat.S_ISREG(each.st_mode) and each.st_nlink > 1 for each in files)


def remove_leftovers(folder: Path) -> None:
    """Finish deletions that were killed; call it while no run uses the folder."""
    for path in folder.glob(f"{_DELETED}*"):
        shutil.rmtree(path, ignore_errors=True)


class Keeper:
    """Keeps a run's checkpoints by the rule; lives on rank 0."""

    def __init__(
        self,
        folder: Path,
        rule: KeepingRule,
        *,
        say: Callable[[str], None],
        has_manifest: bool = False,
    ) -> None:
        """Keep the checkpoints of ``folder``; ``say`` takes one line for the run's owner."""
        self._folder = folder
        self._rule = rule
        self._say = say
        self._has_manifest = has_manifest
        self._whole: set[int] = set()
        self._unreadable: set[int] = set()

    def distrust(self, step: int) -> None:
        """Treat a checkpoint as damaged: its files look complete, but it could not be read."""
        self._whole.discard(step)
        self._unreadable.add(step)

    def clear(self, step: int) -> None:
        """Before a save: delete what a killed save has left of this step.

        Megatron would write over it in place, and leave the shards of a job with more ranks. So a
        complete one is deleted too if it shares files with another run, which is a branch of this
        one or its trunk: under their names there, the files keep their content.
        """
        checkpoint = checkpoint_of(self._folder, step)
        try:
            found = self._problems(step) if is_there(checkpoint) else []
        except OSError as error:
            # Complete or not, it would be written over.
            found = [f"cannot be read ({error})"]
        if found:
            self._say(f"{checkpoint.name}: {found[0]}; removed before it is saved again")
            self._delete(checkpoint)
        elif checkpoint.is_dir() and _shares_files(checkpoint):
            self._delete(checkpoint)
        # A complete checkpoint that is saved again has an old record. With ``verify-integrity``,
        # Megatron's manifest would list it as a file of the new checkpoint.
        (checkpoint / RECORD).unlink(missing_ok=True)

    def after_save(self, step: int) -> None:
        """After a save: check the new checkpoint, write down what it is, delete by the rule."""
        checkpoint = checkpoint_of(self._folder, step)
        # This save may have replaced a complete checkpoint.
        self._whole.discard(step)
        found = examine(checkpoint, has_manifest=self._has_manifest)
        if found.problems:
            self._say(
                f"{checkpoint.name}: {found.problems[0]}; it was just saved, so nothing is deleted"
            )
            return
        self._whole.add(step)
        try:
            record_save(checkpoint, found.places)
        except OSError as error:
            # It is complete without one, and a full or read-only disk is no reason to end a run.
            self._say(f"{checkpoint.name}: no {RECORD} could be written ({error})")
        steps = [step_of(path) for path in list_checkpoints(self._folder) if not path.is_symlink()]
        deleted = []
        try:
            # A newer one is damaged: the run passed over it when it started.
            whole = self._newest_whole([each for each in steps if each <= step])
            for old in steps_to_delete(steps, whole, self._rule):
                self._delete(checkpoint_of(self._folder, old))
                deleted.append(checkpoint_of(self._folder, old).name)
        except OSError as error:
            # The next save tries again: a full or read-only disk is no reason to end a run.
            self._say(f"{self._folder}: an old checkpoint was not deleted: {error}")
        if deleted:
            self._say(f"checkpoints deleted by rule: {', '.join(deleted)}")

    def _newest_whole(self, steps: Collection[int]) -> list[int]:
        """List the newest complete ones, as many as the rule keeps: the rest need not be read."""
        whole: list[int] = []
        if self._rule.num_last() is None:
            # None is deleted.
            return whole
        for step in sorted(steps, reverse=True):
            if len(whole) == self._rule.num_last():
                break
            if not self._problems(step):
                whole.append(step)
        return whole

    def _problems(self, step: int) -> list[str]:
        checkpoint = checkpoint_of(self._folder, step)
        if step in self._whole:
            return []
        if step in self._unreadable:
            return ["could not be read when the run started"]
        found = examine(checkpoint, has_manifest=self._has_manifest)
        if found.error is not None and not isinstance(found.error, FileNotFoundError):
            # Also where a disk has failed to read it: another try may do better.
            raise found.error
        if not found.problems:
            self._whole.add(step)
        return found.problems

    def _delete(self, checkpoint: Path) -> None:
        self._whole.discard(step_of(checkpoint))
        self._unreadable.discard(step_of(checkpoint))
        delete(checkpoint)
