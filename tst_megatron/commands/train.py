"""``tst-megatron train``: one rank of a job, or the start of all ranks of a small one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron.commands.shared import (
    Overrides,
    RecipePath,
    announce,
    checked_recipe,
    rank_of_environment,
    tell,
)
from tst_megatron.training.exit_status import STOPPED

if TYPE_CHECKING:
    from tst_megatron.check import CheckedRecipe
    from tst_megatron.training.checkpoints import Start
    from tst_megatron.training.run_folder import RunFolder


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(
            # Not --run: torchrun takes that for an abbreviation of an option of its own.
            "--run-folder",
            help="An existing one is resumed. Default: runs/FOLDER-RECIPE.",
        ),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            min=1, help="Start this many ranks here. Without it, this process is one rank."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Refuse a run folder that is not empty.")
    ] = False,
) -> None:
    """Train as a recipe says, or resume a run that was stopped.

    Under srun or torchrun every process is one rank; with --nproc this command starts the ranks
    itself.
    """
    folder = run or Path("runs") / f"{recipe.resolve().parent.name}-{recipe.stem}"
    try:
        status = train_run(recipe, overrides or [], folder, nproc=nproc, fresh=fresh)
    except KeyboardInterrupt:
        # A rank takes Ctrl-C as a signal to stop, so no rank was started.
        tell("stopped before training began")
        status = STOPPED
    raise typer.Exit(status)


def train_run(
    recipe: Path, overrides: list[str], folder: Path, *, nproc: int | None, fresh: bool = False
) -> int:
    """Train in a run folder, as one rank or by starting all of them, and return the exit status."""
    from tst_megatron.training import launch, stacks, stopping

    if nproc is None:
        # This process is a rank, and what follows takes half a minute on a busy machine.
        stopping.listen()
        stacks.listen()
    from tst_megatron.training.run_folder import RunFolder

    rank = rank_of_environment(nproc)
    run = RunFolder(folder)
    checked = checked_recipe(recipe, overrides, 1 if nproc is None and rank is None else nproc)
    is_held = launch.is_started_here()
    if is_held or rank not in (None, 0):
        return _train_as_a_rank(checked, run, is_held=is_held, fresh=fresh)
    with run.held(say=tell):
        if nproc is None:
            return _train_as_a_rank(checked, run, is_held=True, fresh=fresh)
        command = ["train", str(recipe), *overrides, "--run-folder", str(folder)]
        return _launch_ranks(checked, run, command, nproc, fresh=fresh)


def _launch_ranks(
    checked: CheckedRecipe, run: RunFolder, command: list[str], nproc: int, *, fresh: bool
) -> int:
    """Make the run folder ready, and start the ranks."""
    from tst_megatron.training.launch import launch

    _make_ready(checked, run, fresh=fresh)
    if _is_finished(checked, run, is_first=True):
        return 0
    console = Console()
    announce(checked, console)
    return launch(command, num_processes=nproc, logs=run.logs, console=console)


def _train_as_a_rank(checked: CheckedRecipe, run: RunFolder, *, is_held: bool, fresh: bool) -> int:
    """Train in this process, which may be the only rank.

    Args:
        checked: the recipe.
        run: its folder.
        is_held: this process or its launcher holds the folder; else the first rank has to.
        fresh: whether the folder must be empty.
    """
    from tst_megatron.data.ready import wait_until_ready
    from tst_megatron.training.run_folder import check_run

    rank, start = rank_of_environment(), None
    if rank in (None, 0):
        start = _make_ready(checked, run, fresh=fresh)
    else:
        # In the order of the first rank, whose indexes may take it hours.
        wait_until_ready(checked.stream, checked.corpora)
        # The first rank of a finished run may have ended by now.
        run.wait_until_prepared(is_held=is_held or run.is_finished(checked))
        check_run(checked, run, fresh=False)
    run.join()
    if _is_finished(checked, run, is_first=rank in (None, 0)):
        return 0

    from tst_megatron.training.pretrain import pretrain, redirect_output_to
    from tst_megatron.training.run_records import clear_log

    if rank is None:
        announce(checked, Console())
        rank = _be_the_only_rank()
    if rank == 0:
        run.repair(checked)
    for note in clear_log(run.log(rank)):
        tell(note)
    console = redirect_output_to(str(run.log(rank)))
    try:
        return pretrain(checked, run, start=start, console=console)
    except (ValueError, OSError) as error:
        # The input was checked above; this is a fault, and `main` takes these for bad input.
        raise RuntimeError("training failed") from error


def _make_ready(checked: CheckedRecipe, run: RunFolder, *, fresh: bool) -> Start:
    """What the launcher and the first rank do before any rank reads: check, index, prepare."""
    from tst_megatron.data.ready import build_indexes
    from tst_megatron.training.start import plan_start

    start = plan_start(checked, run, fresh=fresh)
    build_indexes(checked.stream, checked.corpora, Console())
    for note in run.prepare(checked):
        tell(note)
    return start


def _is_finished(checked: CheckedRecipe, run: RunFolder, *, is_first: bool) -> bool:
    """Whether nothing is left to train; says so, and the first rank puts the folder in order."""
    if not run.is_finished(checked):
        return False
    if is_first:
        for note in run.repair(checked).notes:
            tell(note)
        run.write_finished(checked)
    tell(f"{run.path}: this run is finished.")
    return True


def _be_the_only_rank() -> int:
    from tst_megatron.training.launch import free_port

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return 0
