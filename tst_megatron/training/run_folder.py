"""The run folder: a run's recipe, numbers, logs, checkpoints and state."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tst_megatron import __version__
from tst_megatron.data.tokenizer import HUGGING_FACE_FOLDER, SENTENCEPIECE_FILE, copy_files
from tst_megatron.files import copy_beside, folder_appearing_whole, is_beside, write_beside
from tst_megatron.installed import package_version
from tst_megatron.recipe import RecipeError
from tst_megatron.training.checkpoints import (
    Start,
    checkpoint_of,
    find_start,
    list_checkpoints,
    problems,
    repair_tracker,
    step_of,
    tracked_step,
)
from tst_megatron.training.exit_status import FINISHED
from tst_megatron.training.identity import differences, identity, notes
from tst_megatron.training.record import events_at
from tst_megatron.training.retention import delete, remove_leftovers

if TYPE_CHECKING:
    # Imports torch, and `tst-megatron status` is to answer in less time than that takes.
    from tst_megatron.check import CheckedRecipe

PACKAGES = (
    "torch",
    "megatron-core",
    "transformer-engine",
    "nvidia-modelopt",
    "transformers",
    "sentencepiece",
    "numpy",
)
"""Packages whose versions decide the numbers of a run."""


ALL_STEPS = "all steps are done"
STARTED = "started, and ended without saying how"
"""Stands while the run goes on, and after a kill."""


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
        self.resolved = path / "resolved.yaml"
        self.state_file = path / "state.json"
        self.slurm = path / "slurm"
        """The job scripts' own: their logs, and ``events.tsv``."""
        self.stop_file = path / "STOP"
        """Made by a person who wants no further start."""

    def log(self, rank: int) -> Path:
        """Where a rank's printed log goes."""
        return self.logs / f"rank-{rank}.log"

    def tokenizer_of(self, checked: CheckedRecipe) -> Path:
        """Where the run keeps its tokenizer: with the checkpoints, to be exported with them."""
        return self.checkpoints / checked.corpora[0].manifest.tokenizer_path.name

    def is_prepared(self) -> bool:
        """Whether a first rank has said what run this is."""
        return self.resolved.exists()

    def problems(self, checked: CheckedRecipe, *, fresh: bool) -> list[str]:
        """Why this run cannot use this folder: none, if it is new or holds the same run."""
        if self.path.exists() and not self.path.is_dir():
            return [f"--run-folder: {self.path} is not a folder. Name another"]
        if not self.path.exists() or not set(self.path.iterdir()) - {self.slurm, self.stop_file}:
            return []
        if fresh:
            return [f"--fresh: {self.path} is not empty. Name another folder, or delete it"]
        if not self.resolved.exists():
            if self._is_half_prepared():
                return []
            return [f"--run-folder: {self.path} has files and no resolved.yaml, so it is not a run"]
        before = yaml.safe_load(self.resolved.read_text(encoding="utf-8"))
        return differences(before, checked)

    def notes(self, checked: CheckedRecipe) -> list[str]:
        """What the owner of this run should know of a recipe that changes what may change."""
        if not self.resolved.exists():
            return []
        return notes(yaml.safe_load(self.resolved.read_text(encoding="utf-8")), checked)

    def prepare(self, checked: CheckedRecipe) -> None:
        """Make the folder and write what describes the run; the first rank does this."""
        for folder in self._folders():
            folder.mkdir(parents=True, exist_ok=True)
        # Written once: other ranks of a resumed run may be reading it. What a killed start left
        # may be of another recipe.
        is_new = not self.resolved.exists()
        self._keep_tokenizer(checked, is_new=is_new)
        if is_new or not self.recipe.exists():
            copy_beside(checked.recipe.path, self.recipe)
        write_beside(self.resolved, yaml.safe_dump(identity(checked), sort_keys=False))

    def _keep_tokenizer(self, checked: CheckedRecipe, *, is_new: bool) -> None:
        source, target = checked.corpora[0].manifest.tokenizer_path, self.tokenizer_of(checked)
        if is_new:
            for path in self.checkpoints.iterdir():
                if any(path == place or is_beside(path, place) for place in self._tokenizers()):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        if target.exists():
            return
        if source.is_file():
            copy_beside(source, target)
            return
        with folder_appearing_whole(target) as folder:
            copy_files(source, folder)

    def _tokenizers(self) -> tuple[Path, ...]:
        return self.checkpoints / SENTENCEPIECE_FILE, self.checkpoints / HUGGING_FACE_FOLDER

    def _folders(self) -> tuple[Path, ...]:
        return self.checkpoints, self.tensorboard, self.logs, self.report

    def _is_half_prepared(self) -> bool:
        """Whether all that the folder holds is what a ``prepare`` leaves that was killed.

        Beside that, what a job script made before it.
        """
        kept = (*self._tokenizers(), self.recipe, self.resolved, self.stop_file)

        def is_ours(path: Path) -> bool:
            if path.is_relative_to(self.slurm) or path in self._folders():
                return True
            return any(
                place in kept or any(is_beside(place, each) for each in kept)
                for place in (path, path.parent)
            )

        return all(is_ours(path) for path in self.path.rglob("*"))

    def wait_until_prepared(self, *, seconds: float = 300.0) -> None:
        """Wait for the first rank's ``prepare``; what it writes last is there when this returns.

        Raises:
            RuntimeError: it did not happen in time.
        """
        deadline = time.monotonic() + seconds
        while not self.resolved.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.path} was not prepared by rank 0 within {seconds:.0f} s. Is it on a "
                    "file system that all nodes share?"
                )
            time.sleep(0.2)

    def write_versions(
        self, *, device: str, world_size: int, layout: Mapping[str, Any], step: int
    ) -> None:
        """Record what the run's numbers were made with.

        Args:
            device: the name of the accelerator.
            world_size: ranks of this start.
            layout: how this start is cut. Those of earlier starts stay, each with the step after
                which it came, as far as their steps do.
            step: the step that this start goes on from.
        """
        path = self.path / "versions.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        layouts = [entry for entry in before.get("layouts", []) if entry["after step"] < step]
        if not layouts or layouts[-1]["layout"] != layout:
            layouts.append({"after step": step, "layout": dict(layout)})
        versions = {
            "tst_megatron": __version__,
            "python": platform.python_version(),
            **{package: package_version(package) for package in PACKAGES},
            "device": device,
            "world size": world_size,
            "layouts": layouts,
        }
        write_beside(path, json.dumps(versions, indent=2) + "\n")

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
        if wanted <= events_at(self.metrics, checked.schedule.num_steps):
            return ALL_STEPS
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
        """What ``write_state`` last recorded."""
        if not self.state_file.exists():
            return None
        state: dict[str, Any] = json.loads(self.state_file.read_text(encoding="utf-8"))
        return state

    def is_finished(self, checked: CheckedRecipe) -> bool:
        """Whether the checkpoint of the last step is whole; every rank finds the same."""
        last = checkpoint_of(self.checkpoints, checked.schedule.num_steps)
        try:
            return last.is_dir() and not problems(last, has_manifest=saves_manifest(checked))
        except FileNotFoundError:
            # The first rank is taking it away (``repair``), which it does with damaged ones alone.
            return False

    def find_start(self, checked: CheckedRecipe) -> Start:
        """The step that the run goes on from; see ``checkpoints.find_start``."""
        return find_start(self.checkpoints, has_manifest=saves_manifest(checked))

    def repair(self, checked: CheckedRecipe) -> Start:
        """Put the checkpoints in order for a start; the first rank does this, before the others.

        Raises:
            RecipeError: something was saved, and none of it is whole.
        """
        remove_leftovers(self.checkpoints)
        start = repair_tracker(self.checkpoints, has_manifest=saves_manifest(checked))
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
