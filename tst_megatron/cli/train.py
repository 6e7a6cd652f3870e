"""``tst-megatron train``: one rank of a job, or the start of all ranks of a small one."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import (
    Overrides,
    RecipePath,
    announce,
    checked_recipe,
    rank_of_environment,
    tell,
)
from tst_megatron.recipe.profiles import PROFILES
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.system.exit_status import BAD_INPUT, FAILED, FINISHED, STOPPED
from tst_megatron.training.run.state import STARTED

if TYPE_CHECKING:
    from tst_megatron.checkpoint.start import Start
    from tst_megatron.recipe.check.checked import CheckedRecipe
    from tst_megatron.training.run.folder import RunFolder


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
    from tst_megatron.system.processes import signals
    from tst_megatron.training.run import launch, stacks

    begun = time.monotonic()
    if nproc is None:
        # This process is a rank, and what follows takes half a minute on a busy machine.
        signals.listen()
        stacks.listen()
    from tst_megatron.training.run.folder import RunFolder

    rank, run = rank_of_environment(nproc), RunFolder(folder)
    is_only_rank = nproc is None and rank is None
    if is_only_rank:
        # Before torch is imported, which then makes its threads.
        launch.take_threads_of_the_only_rank()
    if is_only_rank or nproc is not None:
        _refuse_without_gpus(recipe, overrides, run, nproc or 1)
    command = ["train", str(recipe), *overrides, "--run-folder", str(folder)]
    as_a_rank = partial(_train_as_a_rank, run=run, fresh=fresh, begun=begun, command=command)
    is_held = launch.is_started_here()
    # The launcher has noted this start, so that whatever ends it from here on is the run's failure.
    with _failure_noted(run, rank) if is_held else contextlib.nullcontext():
        checked = checked_recipe(recipe, overrides, 1 if is_only_rank else nproc)
        if is_held or rank not in (None, 0):
            return as_a_rank(checked, is_held=is_held)
    with run.held(say=tell):
        if nproc is None:
            return as_a_rank(checked, is_held=True)
        return _launch_ranks(checked, run, command, nproc, fresh=fresh)


def _refuse_without_gpus(
    recipe: Path, overrides: list[str], run: RunFolder, num_ranks: int
) -> None:
    """Refuse what this machine has no GPUs for, before the check, which takes much longer.

    Its other findings would be of a recipe that has to be changed first. A finished run needs none.

    Raises:
        RecipeError: with what to do about it.
    """
    from tst_megatron.megatron.cpu.device import why_not_here

    profile = load_recipe(recipe, overrides).profile
    if (profile is not None and profile not in PROFILES) or _says_finished(run):
        return
    if problem := why_not_here(profile, num_ranks=num_ranks):
        raise RecipeError([problem])


def _says_finished(run: RunFolder) -> bool:
    return (run.state() or {}).get("status") == "finished"


def _launch_ranks(
    checked: CheckedRecipe, run: RunFolder, command: list[str], nproc: int, *, fresh: bool
) -> int:
    """Make the run folder ready, and start the ranks."""
    from tst_megatron.system.processes.signals import INTERRUPTED
    from tst_megatron.training.run.launch import launch

    _make_ready(checked, run, fresh=fresh)
    if _is_finished(checked, run, is_first=True):
        return 0
    _note_start(checked, run)
    console = Console()
    announce(checked, console)
    status = launch(
        command,
        num_processes=nproc,
        logs=run.logs,
        console=console,
        on_failure=lambda ended: _note_failure(run, ended, FAILED),
    )
    if status not in (FINISHED, STOPPED, BAD_INPUT, INTERRUPTED):
        # Last, below what each rank has said: the reason that came first.
        tell(f"failed: {(run.state() or {}).get('reason')} (logs: {run.logs})")
    return status


def _note_start(checked: CheckedRecipe, run: RunFolder) -> None:
    """Say that this start has begun, from now on until it says how it ended."""
    from tst_megatron.training.pretrain import note_start

    note_start(run, "cpu" if checked.recipe.profile == "cpu" else "unknown")


def _note_failure(run: RunFolder, reason: str, status: int) -> None:
    """Say why a start that was noted has failed, unless a rank has said it."""
    state = run.state()
    if state is not None and state["reason"] == STARTED:
        # On a full disk, say, what ends this start is told on the console alone.
        with contextlib.suppress(OSError):
            device, step = str(state.get("device", "unknown")), state["step"]
            run.write_state("failed", reason=reason, step=step, device=device, exit_status=status)


@contextlib.contextmanager
def _failure_noted(run: RunFolder, rank: int | None) -> Iterator[None]:
    """Note what ends a start that has been noted, before this rank has a log of its own."""
    try:
        yield
    except Exception as error:
        is_refused = isinstance(error, RecipeError)
        reason = "; ".join(error.problems) if isinstance(error, RecipeError) else repr(error)
        _note_failure(run, f"rank {rank or 0}: {reason}", BAD_INPUT if is_refused else FAILED)
        raise


def _train_as_a_rank(
    checked: CheckedRecipe,
    *,
    run: RunFolder,
    is_held: bool,
    fresh: bool,
    begun: float,
    command: list[str],
) -> int:
    """Train in this process, which may be the only rank.

    Args:
        checked: the recipe.
        run: its folder.
        is_held: this process or its launcher holds the folder; else the first rank has to.
        fresh: whether the folder must be empty.
        begun: when this process began, by ``time.monotonic``.
        command: words of the command line that this rank was started with.
    """
    from tst_megatron.training.run.folder import check_run
    from tst_megatron.training.run.indexes import wait_until_ready

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

    from tst_megatron.training.pretrain import redirect_output_to
    from tst_megatron.training.run.launch import is_started_here
    from tst_megatron.training.run.records import clear_log

    again = _command_again(command, rank)
    if rank in (None, 0) and not is_started_here():
        # A launcher has noted it before, and another rank may have failed since.
        _note_start(checked, run)
    with _failure_noted(run, rank):
        if rank is None:
            announce(checked, Console())
            rank = _be_the_only_rank()
        if rank == 0:
            run.repair(checked)
        for note in clear_log(run.log(rank)):
            tell(note)
        console = redirect_output_to(str(run.log(rank)))
    status = _pretrain(checked, run, start, rank, console)
    if status in (FINISHED, STOPPED):
        _say_end(checked, run, rank, status, console, seconds=time.monotonic() - begun, again=again)
    return status


def _pretrain(
    checked: CheckedRecipe, run: RunFolder, start: Start | None, rank: int, console: Console
) -> int:
    """Train, and say on the console what ended it if ``pretrain`` could not."""
    from tst_megatron.training.pretrain import pretrain, say_failure

    try:
        return pretrain(checked, run, start=start, console=console)
    except Exception as error:
        # To the log. The input was checked above, so this is a fault, whatever `main` takes it for.
        traceback.print_exc()
        _note_failure(run, f"rank {rank}: {error!r}", FAILED)
        say_failure(console, f"rank {rank}: {error!r}", run.log(rank))
        return FAILED


def _say_end(
    checked: CheckedRecipe,
    run: RunFolder,
    rank: int,
    status: int,
    console: Console,
    *,
    seconds: float,
    again: str,
) -> None:
    """On the first rank: how the run stands, and a picture of it. The others let it speak."""
    from tst_megatron.cli.views.summary import end_with_summary, wait_for_summary

    def say(line: str) -> None:
        # Who has closed the terminal finds it in the run folder.
        with contextlib.suppress(OSError):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    if rank == 0 and (run.state() or {}).get("status") in ("finished", "stopped"):
        log = run.log(rank)
        end_with_summary(run, checked.schedule, say=say, seconds=seconds, log=log, resume=again)
    elif rank != 0 and status == STOPPED:
        wait_for_summary(run)


def _command_again(command: list[str], rank: int | None) -> str:
    """The command that goes on with this run, to be copied."""
    from tst_megatron.training.run import launch

    words = shlex.join(["tst-megatron", *command])
    if rank is None:
        return words
    if launch.is_started_here():
        return f"{words} --nproc {os.environ['WORLD_SIZE']}"
    return f"start the same job again, in which every rank runs: {words}"


def _make_ready(checked: CheckedRecipe, run: RunFolder, *, fresh: bool) -> Start:
    """What the launcher and the first rank do before any rank reads: check, index, prepare."""
    from tst_megatron.training.run.indexes import build_indexes
    from tst_megatron.training.run.start import plan_start

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
        from tst_megatron.cli.views.summary import say_finished

        for note in run.repair(checked).notes:
            tell(note)
        run.write_finished(checked)
        say_finished(run, checked.schedule, say=tell)
    return True


def _be_the_only_rank() -> int:
    from tst_megatron.training.run.launch import free_port

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return 0
