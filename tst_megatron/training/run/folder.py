"""The folder of a run: its paths, its lock, and its ``state.json``.

``prepare`` writes the rest of it at a start, ``saves`` looks after its checkpoints, and ``records``
says which of its files are damaged.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.folder import (
    checkpoint_of,
    list_checkpoints,
    step_of,
    tracked_step,
)
from tst_megatron.checkpoint.known_saves import SAVES
from tst_megatron.checkpoint.outputs import check_output
from tst_megatron.checkpoint.run_files import RESOLVED, is_run, steps_of_trunk
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system.files import write_beside
from tst_megatron.system.paths import is_there
from tst_megatron.system.processes import lock
from tst_megatron.system.processes.holder import Holder
from tst_megatron.system.records import Damaged
from tst_megatron.training.report.plan_file import PLAN
from tst_megatron.training.run.state import read_state

VERSIONS = "versions.json"


class RunFolder:
    """The files of one run, by name. Making one of these objects writes nothing."""

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
        self.plan = path / PLAN
        self.versions = path / VERSIONS
        self.saves = path / SAVES
        """Tells that a save was completed (``known_saves``)."""
        self.locks = {path / name for name in lock.FILES}
        self.slurm = path / "slurm"
        """Written by the job scripts alone: their logs, and ``events.tsv``."""
        self.stop_file = path / "STOP"
        """Made by a person who wants no further start."""

    def log(self, rank: int) -> Path:
        """Return where a rank's printed log goes."""
        return self.logs / f"rank-{rank}.log"

    def is_prepared(self) -> bool:
        """Tell whether a first rank has said what run this is."""
        return is_run(self.path)

    def has_begun(self) -> bool:
        """Tell whether ranks have left something here: words in a log, numbers or a checkpoint.

        What a branch has of its trunk is none of that.
        """
        logs = self.logs.glob("rank-*.log") if self.logs.is_dir() else ()
        if any(is_there(path) for path in logs):
            return True
        try:
            first = steps_of_trunk(self.path)
        except Damaged:
            first = 0
        newer = [path for path in list_checkpoints(self.checkpoints) if step_of(path) > first]
        return bool(newer) or (not first and is_there(self.metrics))

    # --- one start at a time ----------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, *, say: lock.Say) -> Iterator[None]:
        """Be the one start that works in this folder.

        A folder that this start has made is taken away again if the start fails before it writes.

        Args:
            say: takes a line for a person.

        Raises:
            InUse: another start works in it.
            RecipeError: it cannot be a folder.
        """
        if problems := self.place_problems():
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
        """Return who works in this folder at the moment, or None."""
        return lock.holder(self.path)

    def place_problems(self) -> list[str]:
        """List what is in the place of this folder or of its checkpoints, and is no folder."""
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

    # --- how the run stands -----------------------------------------------------------------------

    def state(self) -> dict[str, Any] | None:
        """Return what ``write_state`` last recorded; None where nothing can be read."""
        try:
            return read_state(self.state_file)
        except Damaged:
            return None

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
        """Record how the run stands: finished, stopped or failed. The job scripts read this.

        Args:
            status: the word.
            reason: for a person.
            step: the step that a start would resume after.
            device: the name of the accelerator.
            exit_status: what the process ends with (``exit_status``), or would if it were killed.
            sick_node: the node that the next start must avoid.
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

    def last_checkpoint(self) -> Path | None:
        """Return the checkpoint that Megatron's tracker file names, if both exist."""
        step = tracked_step(self.checkpoints)
        checkpoint = None if step is None else checkpoint_of(self.checkpoints, step)
        return checkpoint if checkpoint and checkpoint.is_dir() else None
