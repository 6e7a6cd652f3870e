"""The run folder: a run's recipe, numbers, logs, checkpoints and state."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tst_megatron.checkpoint.folder import (
    checkpoint_of,
    list_checkpoints,
    step_of,
    tracked_step,
)
from tst_megatron.checkpoint.known_saves import SAVES, known_saves, note_save, noted_save
from tst_megatron.checkpoint.retention import delete, remove_leftovers
from tst_megatron.checkpoint.run_files import RESOLVED, is_run, places_of_tokenizers
from tst_megatron.checkpoint.start import Start, find_start, repair_tracker
from tst_megatron.checkpoint.whole import problems
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system.exit_status import FINISHED
from tst_megatron.system.files import copy_beside, is_beside, write_beside
from tst_megatron.system.machine.errors import raise_passing
from tst_megatron.system.outputs import check_output
from tst_megatron.system.paths import is_there
from tst_megatron.system.processes import lock
from tst_megatron.system.processes.holder import Holder
from tst_megatron.system.records import Damaged
from tst_megatron.training.record import events_at
from tst_megatron.training.run.identity import differences, identity
from tst_megatron.training.run.identity import notes as notes_of_identity
from tst_megatron.training.run.records import (
    VERSIONS,
    damage_of,
    damaged_records,
    move_damaged_aside,
    read_resolved,
)
from tst_megatron.training.run.state import ALL_STEPS, STARTED, read_state
from tst_megatron.training.run.tokenizer import (
    keep_tokenizer,
    kept_tokenizer,
    wrong_tokenizers,
)

if TYPE_CHECKING:
    # Imports torch, and `tst-megatron status` is to answer in less time than that takes.
    from tst_megatron.recipe.check.checked import CheckedRecipe


class RunFolder:
    """The files of one run. Nothing is written before ``prepare``."""

    def __init__(self, path: Path) -> None:
        """Name the folder of a run."""
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.logs = path / "logs"
        self.report = path / "report"
        self.recipe = path / "recipe.yaml"
        self.resolved = path / RESOLVED
        self.state_file = path / "state.json"
        self.versions = path / VERSIONS
        self.saves = path / SAVES
        """That a save was completed (``known_saves``)."""
        self.locks = {path / name for name in lock.FILES}
        self.slurm = path / "slurm"
        """The job scripts' own: their logs, and ``events.tsv``."""
        self.stop_file = path / "STOP"
        """Made by a person who wants no further start."""

    def log(self, rank: int) -> Path:
        """Where a rank's printed log goes."""
        return self.logs / f"rank-{rank}.log"

    def tokenizer_of(self, checked: CheckedRecipe) -> Path:
        """Where the run keeps its tokenizer: with the checkpoints, to be exported with them."""
        return kept_tokenizer(self.checkpoints, checked.corpora[0].manifest)

    def is_prepared(self) -> bool:
        """Whether a first rank has said what run this is."""
        return is_run(self.path)

    def has_begun(self) -> bool:
        """Whether ranks have left something here: words in a log, numbers or a checkpoint."""
        logs = self.logs.glob("rank-*.log") if self.logs.is_dir() else ()
        return any(is_there(path) for path in (self.metrics, *logs)) or bool(
            list_checkpoints(self.checkpoints)
        )

    @contextlib.contextmanager
    def held(self, *, say: lock.Say) -> Iterator[None]:
        """Be the one start that works in this folder; a new one goes again if nothing came of it.

        Args:
            say: takes a line for a person.

        Raises:
            InUse: another start works in it.
            RecipeError: it cannot be a folder.
        """
        if problems := self._place_problems():
            raise RecipeError(problems)
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(lock.held(self.path, say=say))
                    break
                except FileNotFoundError:
                    # Another start that made the folder has failed and taken it away.
                    self.path.mkdir(parents=True, exist_ok=True)
            try:
                yield
            except BaseException:
                if made and set(self.path.iterdir()) <= self.locks:
                    shutil.rmtree(self.path)
                    with contextlib.suppress(OSError):
                        for path in made[1:]:
                            path.rmdir()
                raise

    def join(self) -> None:
        """Be one of the processes that write here for the start that holds this folder."""
        lock.join(self.path)

    def user(self) -> Holder | None:
        """Who works in this folder at the moment, if anybody does."""
        return lock.holder(self.path)

    def _place_problems(self) -> list[str]:
        """What stands where this folder and its checkpoints are to be."""
        found = []
        for path in (self.path, self.checkpoints):
            if path.is_symlink() and not path.exists():
                found.append(
                    f"{path}: is a link to {path.readlink()}, which is not there. Bring that back, "
                    "or mount what it is on, or use another --run-folder"
                )
            elif path.exists() and not path.is_dir():
                lost = (
                    "" if path == self.path else ", where the run keeps its checkpoints. Move it "
                )
                fix = "away and bring them back, or name another" if lost else ". Name another"
                found.append(f"--run-folder: {path} is not a folder{lost}{fix}")
        if not found and not self.is_prepared():
            try:
                check_output(self.path)
            except ValueError as error:
                found.append(f"--run-folder: {error}")
        return found

    def problems(
        self, checked: CheckedRecipe, *, fresh: bool, copy: dict[str, Any] | None = None
    ) -> list[str]:
        """Why this run cannot use this folder: none, if it is new or holds the same recipe.

        Args:
            checked: the recipe of the start.
            fresh: the folder must be empty.
            copy: what the newest checkpoint says instead of a damaged ``resolved.yaml``.
        """
        if problems := self._place_problems():
            return problems
        ours = {self.slurm, self.stop_file, *self.locks}
        if not self.path.exists() or not set(self.path.iterdir()) - ours:
            return []
        if fresh:
            return [f"--fresh: {self.path} is not empty. Name another folder, or delete it"]
        if not self.is_prepared():
            if self._is_half_prepared():
                return []
            return [f"--run-folder: {self.path} has files and no resolved.yaml, so it is not a run"]
        try:
            before = copy or read_resolved(self.resolved)
        except Damaged as error:
            raise_passing(error)
            return [
                f"{self.resolved}: {error}, and it decides whether this is the same run. Bring it "
                "back, from a backup or from another run folder of the same recipe, where it is "
                "the same"
            ]
        return differences(before, checked)

    def notes(self, checked: CheckedRecipe) -> list[str]:
        """What the owner of this run should know of a recipe that changes what may change."""
        if not self.is_prepared() or damage_of(self.resolved, read_resolved):
            return []
        return notes_of_identity(read_resolved(self.resolved), checked)

    def prepare(self, checked: CheckedRecipe) -> list[str]:
        """Make the folder and write what describes the run; the first rank does this.

        Returns:
            What was damaged and is moved aside, a line each.
        """
        # Written once: other ranks of a resumed run may be reading it. What a killed start left
        # may be of another recipe.
        is_new = not self.is_prepared()
        notes = [] if is_new else move_damaged_aside(self.damaged(checked))
        for folder in self._folders():
            folder.mkdir(parents=True, exist_ok=True)
        keep_tokenizer(self.checkpoints, checked.corpora[0].manifest, is_new=is_new)
        if noted_save(self.path) is None:
            # Of a folder that is older than this file, what was saved until now.
            self.note_save(tracked_step(self.checkpoints) or 0)
        if is_new or not self.recipe.exists():
            copy_beside(checked.recipe.path, self.recipe)
        write_beside(self.resolved, yaml.safe_dump(identity(checked), sort_keys=False))
        return notes

    def damaged(self, checked: CheckedRecipe) -> list[tuple[Path, str]]:
        """What a start would move aside and write anew, each with what is wrong with it."""
        if not self.is_prepared():
            return []
        manifest = checked.corpora[0].manifest
        return damaged_records(self) + wrong_tokenizers(self.checkpoints, manifest)

    def note_save(self, step: int) -> None:
        """Record that the save of a step is complete; also says that it once was, for ever."""
        note_save(self.path, step)

    def _folders(self) -> tuple[Path, ...]:
        return self.checkpoints, self.tensorboard, self.logs, self.report

    def _is_half_prepared(self) -> bool:
        """Whether all that the folder holds is what a ``prepare`` leaves that was killed.

        Beside that, what a job script made before it.
        """
        tokenizers = places_of_tokenizers(self.checkpoints)
        kept = (*tokenizers, self.recipe, self.resolved, self.saves, self.stop_file, *self.locks)

        def is_ours(path: Path) -> bool:
            if path.is_relative_to(self.slurm) or path in self._folders():
                return True
            return any(
                place in kept or any(is_beside(place, each) for each in kept)
                for place in (path, *path.parents)
            )

        return all(is_ours(path) for path in self.path.rglob("*"))

    def wait_until_prepared(self, *, seconds: float = 600.0, is_held: bool = True) -> None:
        """Wait for the first rank's ``prepare``; what it writes last is there when this returns.

        It writes a damaged one anew, or refuses it, which ends the job.

        Args:
            seconds: how long.
            is_held: this rank's launcher holds the folder; else the first rank of this start has
                to, and until it does, the folder may be another start's.

        Raises:
            RuntimeError: it did not happen in time.
        """
        deadline = time.monotonic() + seconds
        while not (self._is_readable() and (is_held or lock.is_of_this_start(self.path))):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.path} was not prepared by rank 0 within {seconds:.0f} s. Is it on a "
                    "file system that all nodes share?"
                )
            time.sleep(0.2)

    def _is_readable(self) -> bool:
        try:
            return self.is_prepared() and not damage_of(self.resolved, read_resolved)
        except OSError:
            # It cannot be read now.
            return False

    def write_finished(self, checked: CheckedRecipe) -> None:
        """Say that the run is finished, also where it ended before it could say so itself."""
        checkpoint, state = self.last_checkpoint(), self.state() or {}
        if checkpoint is not None and state.get("status") != "finished":
            device = str(state.get("device", "unknown"))
            reason = self.reason_of_end(checked)
            step = step_of(checkpoint)
            self.write_state(
                "finished", reason=reason, step=step, device=device, exit_status=FINISHED
            )

    def reason_of_end(self, checked: CheckedRecipe) -> str:
        """What a run with a checkpoint of its last step lacks: a stop may come after that."""
        keys = checked.recipe.megatron
        if not keys.get("eval-interval") or keys.get("eval-iters") == 0:
            return ALL_STEPS
        wanted = {"validation"} | ({"test"} if checked.corpora[0].manifest.test else set())
        try:
            if wanted <= events_at(self.metrics, checked.schedule.num_steps):
                return ALL_STEPS
        except Damaged as error:
            return f"{ALL_STEPS}; {self.metrics.name} {error}"
        return f"{ALL_STEPS}; the last evaluation was cut off"

    def has_failed_since(self, before: dict[str, Any] | None) -> bool:
        """Whether another rank has written that it failed; what fails after it is a consequence.

        Args:
            before: ``state()`` as it was when this rank started.
        """
        now = self.state()
        return (
            now is not None
            and now != before
            and now["status"] == "failed"
            and now["reason"] != STARTED
        )

    def write_state(
        self,
        status: str,
        *,
        reason: str,
        step: int,
        device: str,
        exit_status: int,
        sick_node: str | None = None,
    ) -> None:
        """Record how the run stands: finished, stopped or failed; schedulers' scripts read this.

        Args:
            status: the word.
            reason: for a person.
            step: that a start would go on from.
            device: the name of the accelerator.
            exit_status: what the process ends with (``exit_status``), or would if it were killed.
            sick_node: that the next start must not be on.
        """
        checkpoint = self.last_checkpoint()
        state = {
            "status": status,
            "reason": reason,
            "step": step,
            "checkpoint": str(checkpoint.relative_to(self.path)) if checkpoint else None,
            "device": device,
            "exit_status": exit_status,
            "sick_node": sick_node,
        }
        write_beside(self.state_file, json.dumps(state, indent=2) + "\n")

    def wait_until_ended(self, *, seconds: float = 120.0) -> None:
        """Wait until the first rank has said how a run ended that all ranks end together.

        A scheduler takes the first rank that ends with a status for a failure, and ends the others:
        the first rank too, which may still be writing.
        """
        deadline = time.monotonic() + seconds
        while (self.state() or {}).get("reason") == STARTED and time.monotonic() < deadline:
            time.sleep(0.1)

    def state(self) -> dict[str, Any] | None:
        """What ``write_state`` last recorded; None where nothing did, or nothing can be read."""
        try:
            return read_state(self.state_file)
        except Damaged:
            return None

    def is_finished(self, checked: CheckedRecipe) -> bool:
        """Whether the checkpoint of the last step is whole; every rank finds the same."""
        last = checkpoint_of(self.checkpoints, checked.schedule.num_steps)
        try:
            return last.is_dir() and not problems(last, has_manifest=saves_manifest(checked))
        except OSError:
            # The first rank is taking it away (``repair``), which it does with damaged ones alone;
            # or it cannot be read now, which a start is told by what it reads next.
            return False

    def find_start(self, checked: CheckedRecipe) -> Start:
        """The step that the run goes on from; see ``checkpoints.find_start``.

        Raises:
            RecipeError: something was saved, and none of it is whole or there.
            OSError: that cannot be known now.
        """
        start = find_start(self.checkpoints, has_manifest=saves_manifest(checked))
        self._refuse_to_start_over(start)
        return start

    def _refuse_to_start_over(self, start: Start) -> None:
        """Absence is not newness: a run that has saved goes on from what it saved, or not at all.

        Raises:
            RecipeError: it would start from step 0.
        """
        # A link to nowhere is said in other words, with where it leads.
        if start.step or self._place_problems() or not (known := known_saves(self.path)):
            return
        are_there = list_checkpoints(self.checkpoints)
        what = "holds no completed save" if are_there else "holds no checkpoint"
        raise RecipeError(
            [
                f"{self.checkpoints}: {what if self.checkpoints.exists() else 'is missing'}, and "
                f"this run has saved some before ({'; '.join(known)}). Bring them back, or mount "
                "what they are on, to go on; or use another --run-folder to start over"
            ]
        )

    def repair(self, checked: CheckedRecipe) -> Start:
        """Put the checkpoints in order for a start; the first rank does this, before the others.

        Raises:
            RecipeError: something was saved, and none of it is whole.
        """
        start = repair_tracker(self.checkpoints, has_manifest=saves_manifest(checked))
        self._refuse_to_start_over(start)
        remove_leftovers(self.checkpoints)
        if start.step == 0:
            for unfinished in list_checkpoints(self.checkpoints):
                if not unfinished.is_symlink():
                    delete(unfinished)
        return start

    def last_checkpoint(self) -> Path | None:
        """The checkpoint that Megatron's tracker file names, if both exist."""
        step = tracked_step(self.checkpoints)
        checkpoint = None if step is None else checkpoint_of(self.checkpoints, step)
        return checkpoint if checkpoint and checkpoint.is_dir() else None


def saves_manifest(checked: CheckedRecipe) -> bool:
    """Whether the run's checkpoints end with a manifest of hashes, which loading then needs."""
    return "--verify-integrity" in checked.flags


def check_run(checked: CheckedRecipe, run: RunFolder, *, fresh: bool) -> None:
    """Refuse a folder that belongs to another run.

    Raises:
        RecipeError: with what differs.
    """
    if problems := run.problems(checked, fresh=fresh):
        raise RecipeError(problems)
