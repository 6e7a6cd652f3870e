"""Train a run from its recipe to its end, in order: check, folder, announce, run, end.

Three kinds of process come here. The *launcher* (``--nproc``) prepares the folder and starts the
ranks of a small job. A *rank* of a job is started by it, by srun or by torchrun. The *only rank* is
a process that nothing has told a rank: it trains alone. The first rank prepares the folder where
there is no launcher; the others wait for it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tst_megatron.recipe.profiles import PROFILES
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.system.exit_status import BAD_INPUT, FAILED, FINISHED, INTERRUPTED, STOPPED
from tst_megatron.system.processes import signals, stacks
from tst_megatron.training.console import announce, redirect_output_to, tell
from tst_megatron.training.rank import be_the_only_rank, rank_of_environment
from tst_megatron.training.run import endings, launch, prepare, saves
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.plan import RunPlan, run_plan
from tst_megatron.training.run.records import clear_log
from tst_megatron.training.summary import end_with_summary, say_finished, wait_for_summary

if TYPE_CHECKING:
    from tst_megatron.checkpoint.start import Start
    from tst_megatron.recipe.check.checked import CheckedRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    """This process's part in a start."""

    run: RunFolder
    fresh: bool
    """The folder must be empty."""
    command: list[str]
    """Words of the command line that a rank is started with."""
    begun: float
    """When this process began, by ``time.monotonic``."""


def train_run(
    recipe: Path, overrides: list[str], folder: Path, *, nproc: int | None, fresh: bool = False
) -> int:
    """Train in a run folder, as one rank or by starting all of them.

    Args:
        recipe: its file.
        overrides: ``key=value`` words that win over it.
        folder: of the run, new or to be resumed.
        nproc: start that many ranks here; None makes this process one rank.
        fresh: refuse a folder that is not empty.

    Returns:
        The exit status (``system/exit_status.py``).
    """
    begun = time.monotonic()
    if nproc is None:
        # This process is a rank, and the imports that follow take half a minute on a busy machine.
        signals.listen()
        stacks.listen()
    rank = rank_of_environment(nproc)
    is_only_rank = nproc is None and rank is None
    if is_only_rank:
        # Before torch is imported, which then makes its threads.
        launch.take_threads_of_the_only_rank()
    command = ["train", str(recipe), *overrides, "--run-folder", str(folder)]
    this = _Begun(run=RunFolder(folder), fresh=fresh, command=command, begun=begun)

    # Check.
    if is_only_rank or nproc is not None:
        _refuse_without_gpus(recipe, overrides, this.run, nproc or 1)
    check = partial(_checked, recipe, overrides, 1 if is_only_rank else nproc)
    if launch.is_started_here():
        # The launcher has noted this start: whatever ends it from here on is the run's failure.
        with endings.failure_noted(this.run, rank):
            return _train_as_a_rank(check(), this, is_held=True)
    checked = check()
    if rank not in (None, 0):
        return _train_as_a_rank(checked, this, is_held=False)
    # Folder: one start at a time.
    with this.run.held(say=tell):
        if nproc is None:
            return _train_as_a_rank(checked, this, is_held=True)
        return _launch_ranks(checked, this, nproc)


def _checked(recipe: Path, overrides: list[str], nproc: int | None) -> CheckedRecipe:
    # Importing numpy takes a moment, and a rank must listen for signals before.
    from tst_megatron.training.check.check_recipe import checked_recipe

    return checked_recipe(recipe, overrides, nproc)


def _refuse_without_gpus(
    recipe: Path, overrides: list[str], run: RunFolder, num_ranks: int
) -> None:
    """Refuse a recipe that this machine has no GPUs for, before the check, which takes much longer.

    Other findings of the check would be of a recipe that has to be changed first. A finished run
    needs no GPU.

    Raises:
        RecipeError: with what to do about it.
    """
    # Importing torch makes its threads, which the only rank has to set first.
    from tst_megatron.megatron.cpu.device import why_not_here

    profile = load_recipe(recipe, overrides).profile
    is_finished = (run.state() or {}).get("status") == "finished"
    if (profile is not None and profile not in PROFILES) or is_finished:
        return
    if problem := why_not_here(profile, num_ranks=num_ranks):
        raise RecipeError([problem])


# --- the launcher ---------------------------------------------------------------------------------


def _launch_ranks(checked: CheckedRecipe, this: _Begun, nproc: int) -> int:
    """Prepare the run folder, announce the run, and start the ranks."""
    plan, run = run_plan(checked), this.run
    _prepare(checked, plan, this)
    if _end_if_finished(plan, run, is_first=True):
        return FINISHED
    endings.note_start(run, "cpu" if plan.is_on_cpu else "unknown")
    console = Console()
    announce(checked, console)
    status = launch.launch(
        this.command,
        num_processes=nproc,
        logs=run.logs,
        console=console,
        on_failure=lambda ended: endings.note_failure(run, ended, FAILED),
    )
    if status not in (FINISHED, STOPPED, BAD_INPUT, INTERRUPTED):
        # Last, below what each rank has said: the reason that came first.
        tell(f"failed: {(run.state() or {}).get('reason')} (logs: {run.logs})")
    return status


# --- a rank ---------------------------------------------------------------------------------------


def _train_as_a_rank(checked: CheckedRecipe, this: _Begun, *, is_held: bool) -> int:
    """Train in this process, which may be the only rank.

    Args:
        checked: the recipe.
        this: this process's part in the start.
        is_held: this process or its launcher holds the folder; otherwise the first rank has to.
    """
    plan, run, rank = run_plan(checked), this.run, rank_of_environment()
    is_first, start = rank in (None, 0), None
    # Folder.
    if is_first:
        start = _prepare(checked, plan, this)
    else:
        _wait_for_the_first_rank(checked, plan, run, is_held=is_held)
    run.join()
    if _end_if_finished(plan, run, is_first=is_first):
        return FINISHED
    again = _command_again(this.command, rank)
    if is_first and not launch.is_started_here():
        # A launcher has noted it before, and another rank may have failed since.
        endings.note_start(run, "cpu" if plan.is_on_cpu else "unknown")
    with endings.failure_noted(run, rank):
        # Announce.
        if rank is None:
            announce(checked, Console())
            rank = be_the_only_rank()
        # The checkpoints: the tracker names the one to resume from, and cut saves are deleted.
        if rank == 0:
            saves.repair(run, plan)
        console = _open_log(run, rank)
    # Run.
    status = _pretrain(plan, run, start, rank, console)
    # End.
    if status in (FINISHED, STOPPED):
        seconds = time.monotonic() - this.begun
        _say_end(plan, run, rank, status, console, seconds=seconds, again=again)
    return status


def _wait_for_the_first_rank(
    checked: CheckedRecipe, plan: RunPlan, run: RunFolder, *, is_held: bool
) -> None:
    """Wait until the first rank has prepared the folder, and check that it is of this run."""
    # Imports numpy, and a rank must listen for signals before anything slow.
    from tst_megatron.training.run import indexes

    # Imports torch, which takes seconds: the same reason.
    from tst_megatron.training.run.start import check_run

    # In the order of the first rank, whose indexes may take it hours.
    indexes.wait_until_ready(plan.stream, plan.corpora)
    # The first rank of a finished run may have ended by now.
    is_held = is_held or saves.is_finished(run, plan)
    prepare.wait_until_prepared(run, is_held=is_held)
    check_run(run, checked, fresh=False)


def _open_log(run: RunFolder, rank: int) -> Console:
    """Send what this rank prints to its log, and return a console on what was there before."""
    for note in clear_log(run.log(rank)):
        tell(note)
    return redirect_output_to(str(run.log(rank)))


def _pretrain(
    plan: RunPlan, run: RunFolder, start: Start | None, rank: int, console: Console
) -> int:
    """Train, and say on the console what ended it if ``pretrain`` could not."""
    # Importing torch takes seconds, and a rank must listen for signals before.
    from tst_megatron.training.pretrain import pretrain

    try:
        return pretrain(plan, run, start=start, console=console)
    except Exception as error:
        # To the log. The input was checked above, so this is a fault, whatever `main` takes it for.
        traceback.print_exc()
        endings.note_failure(run, f"rank {rank}: {error!r}", FAILED)
        endings.say_failure(console, f"rank {rank}: {error!r}", run.log(rank))
        return FAILED


def _say_end(
    plan: RunPlan,
    run: RunFolder,
    rank: int,
    status: int,
    console: Console,
    *,
    seconds: float,
    again: str,
) -> None:
    """Sum the run up on the first rank, with a picture of its losses; the others wait for that."""

    def say(line: str) -> None:
        # Who has closed the terminal finds it in the run folder.
        with contextlib.suppress(OSError):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    if rank == 0 and (run.state() or {}).get("status") in ("finished", "stopped"):
        log = run.log(rank)
        end_with_summary(run, plan.schedule, say=say, seconds=seconds, log=log, resume=again)
    elif rank != 0 and status == STOPPED:
        wait_for_summary(run)


def _command_again(command: list[str], rank: int | None) -> str:
    """Return the command that resumes this run, to be copied."""
    words = shlex.join(["tst-megatron", *command])
    if rank is None:
        return words
    if launch.is_started_here():
        return f"{words} --nproc {os.environ['WORLD_SIZE']}"
    return f"start the same job again, in which every rank runs: {words}"


# --- launcher or first rank -----------------------------------------------------------------------


def _prepare(checked: CheckedRecipe, plan: RunPlan, this: _Begun) -> Start:
    """Check the start, build the indexes and prepare the folder, before any rank reads."""
    # Imports numpy, and a rank must listen for signals before anything slow.
    from tst_megatron.training.run import indexes

    # Imports torch, which takes seconds: the same reason.
    from tst_megatron.training.run.start import plan_start

    start = plan_start(checked, this.run, fresh=this.fresh)
    indexes.build_indexes(plan.stream, plan.corpora, Console())
    for note in prepare.prepare(this.run, plan):
        tell(note)
    return start


def _end_if_finished(plan: RunPlan, run: RunFolder, *, is_first: bool) -> bool:
    """Tell whether nothing is left to train; if so, the first rank brings the run to its end."""
    if not saves.is_finished(run, plan):
        return False
    if is_first:
        for note in saves.repair(run, plan).notes:
            tell(note)
        endings.write_finished(run, plan)
        say_finished(run, plan.schedule, say=tell)
    return True
