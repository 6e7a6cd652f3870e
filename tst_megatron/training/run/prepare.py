"""Prepare a run folder at a start: write the records that say which run it is.

The first rank does this, or the launcher before it. The other ranks wait for it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tst_megatron.checkpoint.folder import tracked_step
from tst_megatron.checkpoint.known_saves import note_save, noted_save
from tst_megatron.checkpoint.run_files import places_of_tokenizers
from tst_megatron.system.files import copy_beside, is_beside, write_beside
from tst_megatron.system.processes import lock
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.records import (
    damage_of,
    damaged_records,
    move_damaged_aside,
    read_resolved,
)
from tst_megatron.training.run.tokenizer import keep_tokenizer, wrong_tokenizers

if TYPE_CHECKING:
    from tst_megatron.training.run.plan import RunPlan


def folders(run: RunFolder) -> tuple[Path, ...]:
    """Return the folders that every prepared run has: other ranks write into them at once."""
    return run.checkpoints, run.tensorboard, run.logs, run.report


def prepare(run: RunFolder, plan: RunPlan) -> list[str]:
    """Make the folder and write what describes the run.

    Returns:
        A line for each record that was damaged and is moved aside.
    """
    # Written once: other ranks of a resumed run may be reading it. What a killed start left
    # may be of another recipe.
    is_new = not run.is_prepared()
    notes = [] if is_new else move_damaged_aside(damaged(run, plan))
    for folder in folders(run):
        folder.mkdir(parents=True, exist_ok=True)
    keep_tokenizer(run.checkpoints, plan.manifest, is_new=is_new)
    if noted_save(run.path) is None:
        # A folder that is older than this file: record what was saved until now.
        note_save(run.path, tracked_step(run.checkpoints) or 0)
    if is_new or not run.recipe.exists():
        copy_beside(plan.recipe, run.recipe)
    # Last: this file says that the folder is prepared.
    write_beside(run.resolved, yaml.safe_dump(plan.identity, sort_keys=False))
    return notes


def damaged(run: RunFolder, plan: RunPlan) -> list[tuple[Path, str]]:
    """List what a start would move aside and write again, each with what is wrong with it."""
    if not run.is_prepared():
        return []
    return damaged_records(run) + wrong_tokenizers(run.checkpoints, plan.manifest)


def is_half_prepared(run: RunFolder) -> bool:
    """Tell whether the folder holds only what a killed ``prepare`` leaves.

    What a job script makes before a start may be there too.
    """
    tokenizers = places_of_tokenizers(run.checkpoints)
    kept = (*tokenizers, run.recipe, run.resolved, run.saves, run.plan, run.stop_file, *run.locks)

    def is_ours(path: Path) -> bool:
        if path.is_relative_to(run.slurm) or path in folders(run):
            return True
        return any(
            place in kept or any(is_beside(place, each) for each in kept)
            for place in (path, *path.parents)
        )

    return all(is_ours(path) for path in run.path.rglob("*"))


def check_place(run: RunFolder) -> None:
    """Check that a folder is a run's, or can be of a new one.

    Raises:
        ValueError: something else is there.
    """
    problems = run.place_problems()
    if not problems and run.path.exists() and not run.is_prepared() and not is_half_prepared(run):
        problems = [not_a_run(run)]
    if problems:
        raise ValueError("\n".join(problems))


def not_a_run(run: RunFolder) -> str:
    """Say that a folder holds something else."""
    return (
        f"--run-folder: {run.path} has files and no resolved.yaml, so it is not a run. Name another"
    )


def wait_until_prepared(run: RunFolder, *, seconds: float = 600.0, is_held: bool = True) -> None:
    """Wait for the first rank's ``prepare``, until the file that it writes last can be read.

    The first rank replaces a damaged one, or refuses it, which ends the job.

    Args:
        run: the folder.
        seconds: how long to wait.
        is_held: this rank's launcher holds the folder. Otherwise the first rank of this start has
            to, and until it does, the folder may be another start's.

    Raises:
        RuntimeError: it did not happen in time.
    """
    deadline = time.monotonic() + seconds
    while not (_is_readable(run) and (is_held or lock.is_of_this_start(run.path))):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{run.path} was not prepared by rank 0 within {seconds:.0f} s. Is it on a "
                "file system that all nodes share?"
            )
        time.sleep(0.2)


def _is_readable(run: RunFolder) -> bool:
    try:
        return run.is_prepared() and not damage_of(run.resolved, read_resolved)
    except OSError:
        # It cannot be read now.
        return False
