"""The ``tst-megatron`` command: one thin function per subcommand.

Exit statuses: 0 finished, 75 stopped or to be tried again, 2 bad input, 93 do not restart, anything
else a failure.
"""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron import __version__
from tst_megatron.commands.bench import bench_app
from tst_megatron.commands.checkpoint import checkpoint_app
from tst_megatron.commands.cluster import preflight, preflight_verdict
from tst_megatron.commands.data import data_app
from tst_megatron.commands.doctor import doctor
from tst_megatron.commands.evaluate import evaluate, evaluate_data
from tst_megatron.commands.hugging_face import export, generate, import_
from tst_megatron.commands.params import params
from tst_megatron.commands.quantize import quantize
from tst_megatron.commands.shared import (
    BAD_INPUT,
    FAILED,
    Overrides,
    RecipePath,
    announce,
    checked_recipe,
    rank_of_environment,
)
from tst_megatron.commands.status import status
from tst_megatron.files import write_beside
from tst_megatron.recipe import RecipeError
from tst_megatron.system.lock import InUse
from tst_megatron.training.exit_status import STOPPED

if TYPE_CHECKING:
    from tst_megatron.check import CheckedRecipe
    from tst_megatron.training.checkpoints import Start
    from tst_megatron.training.run_folder import RunFolder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pre-train Qwen3-family MoE models on Megatron-Core with Token-Superposition Training.",
)
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")
app.command()(export)
app.command("import")(import_)
app.command()(generate)
app.command()(params)
app.command()(evaluate)
app.command()(evaluate_data)
app.command()(quantize)
app.command()(status)
app.command()(doctor)
app.command()(preflight)
app.command()(preflight_verdict)

WRONG_PATHS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
"""Errors of the operating system that say that a name was wrong."""

TOO_LONG = (
    "this name is too long. A file system takes 255 bytes for a name and 4,095 for a path. Give a "
    "shorter one"
)


def main() -> None:
    """Run the command line; bad input ends in one clear message and status 2."""
    try:
        app()
    except RecipeError as error:
        console = Console(stderr=True)
        noun = "problem" if len(error.problems) == 1 else "problems"
        console.print(f"{len(error.problems)} {noun}:", style="bold red", highlight=False)
        for problem in error.problems:
            console.print(f"  - {problem}", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(BAD_INPUT) from None
    except (ValueError, OSError) as error:
        said, is_bad_input = f"{error}", not isinstance(error, OSError)
        if isinstance(error, InUse) and error.is_earlier_start:
            # What is left of it ends by itself.
            _tell(said)
            raise SystemExit(STOPPED) from None
        if isinstance(error, OSError):
            # A full disk, say, is no fault of the input: trying again may help.
            is_bad_input = isinstance(error, WRONG_PATHS)
            if error.errno == errno.ENAMETOOLONG:
                said, is_bad_input = f"{error.filename}: {TOO_LONG}", True
        Console(stderr=True).print(said, style="red", markup=False, soft_wrap=True)
        raise SystemExit(BAD_INPUT if is_bad_input else FAILED) from None


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks of the job; default: the smallest that fits.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run-folder", help="Also check that this run can be started or resumed."),
    ] = None,
    environment: Annotated[
        Path | None,
        typer.Option(help="Write the variables to start ranks with here, a NAME=VALUE a line."),
    ] = None,
    starting: Annotated[
        bool,
        typer.Option("--starting", help="A start follows: refuse a run folder that is in use."),
    ] = False,
) -> None:
    """Check a recipe before it waits in a queue: all problems at once, status 2 if any."""
    from tst_megatron.training.run_folder import RunFolder
    from tst_megatron.training.run_records import notes_of
    from tst_megatron.training.start import plan_start

    console = Console()
    checked = checked_recipe(recipe, overrides, nproc)
    start, user = None, None
    if run is not None:
        folder = RunFolder(run)
        user = folder.user()
        with folder.held(say=_tell) if starting and run.exists() else nullcontext():
            start = plan_start(checked, folder)
    announce(checked, console)
    if environment is not None:
        lines = (f"{name}={value}\n" for name, value in checked.environment.items())
        write_beside(environment, "".join(lines))
    if run is not None and start is not None:
        is_finished = RunFolder(run).is_finished(checked)
        would = (
            "is finished: a start would do nothing"
            if is_finished
            else f"would start after step {start.step}"
        )
        for note in (*start.notes, *notes_of(RunFolder(run).damaged(checked)), f"{run}: {would}"):
            _tell(note)
        if user is not None and not starting:
            _tell(f"{run}: in use by {user}. A start is refused until that has ended")
    console.print("No problem found.", style="green")


@app.command()
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
        _tell("stopped before training began")
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

    rank = rank_of_environment()
    run = RunFolder(folder)
    checked = checked_recipe(recipe, overrides, 1 if nproc is None and rank is None else nproc)
    is_held = launch.is_started_here()
    if is_held or rank not in (None, 0):
        return _train_as_a_rank(checked, run, is_held=is_held, fresh=fresh)
    with run.held(say=_tell):
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
        _tell(note)
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
        _tell(note)
    return start


def _is_finished(checked: CheckedRecipe, run: RunFolder, *, is_first: bool) -> bool:
    """Whether nothing is left to train; says so, and the first rank puts the folder in order."""
    if not run.is_finished(checked):
        return False
    if is_first:
        for note in run.repair(checked).notes:
            _tell(note)
        run.write_finished(checked)
    _tell(f"{run.path}: this run is finished.")
    return True


def _tell(line: str) -> None:
    Console().print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("quickstart"),
    short: Annotated[
        bool, typer.Option("--short", help="A few steps only: shows the chain, learns nothing.")
    ] = False,
) -> None:
    """See the whole chain in minutes: text, tokenizer, both phases, export, generation."""
    from tst_megatron.quickstart import quickstart as run_quickstart

    raise typer.Exit(run_quickstart(folder, short=short, console=Console()))


def _be_the_only_rank() -> int:
    from tst_megatron.training.launch import free_port

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return 0
