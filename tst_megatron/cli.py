"""The ``tst-megatron`` command: one thin function per subcommand.

Exit statuses: 0 finished, 75 stopped or to be tried again, 2 bad input, 93 do not restart, anything
else a failure.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

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
) -> None:
    """Check a recipe before it waits in a queue: all problems at once, status 2 if any."""
    from tst_megatron.training.run_folder import RunFolder
    from tst_megatron.training.run_records import notes_of
    from tst_megatron.training.start import plan_start

    console = Console()
    checked = checked_recipe(recipe, overrides, nproc)
    start = plan_start(checked, RunFolder(run)) if run else None
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
        found = notes_of(RunFolder(run).damaged(checked))
        _say((*start.notes, *found, f"{run}: {would}"), console)
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
    raise typer.Exit(train_run(recipe, overrides or [], folder, nproc=nproc, fresh=fresh))


def train_run(
    recipe: Path, overrides: list[str], folder: Path, *, nproc: int | None, fresh: bool = False
) -> int:
    """Train in a run folder, as one rank or by starting all of them, and return the exit status."""
    from tst_megatron.training import stacks, stopping

    if nproc is None:
        # This process is a rank, and what follows takes half a minute on a busy machine.
        stopping.listen()
        stacks.listen()
    from tst_megatron.data.ready import build_indexes, wait_until_ready
    from tst_megatron.training.launch import launch
    from tst_megatron.training.run_folder import RunFolder, check_run
    from tst_megatron.training.start import plan_start

    console = Console()
    rank = rank_of_environment()
    run = RunFolder(folder)
    checked = checked_recipe(recipe, overrides, 1 if nproc is None and rank is None else nproc)
    start = None
    if rank in (None, 0):
        start = plan_start(checked, run, fresh=fresh)
        build_indexes(checked.stream, checked.corpora, console)
        _say(run.prepare(checked), console)
    else:
        # In the order of the first rank, whose indexes may take it hours.
        wait_until_ready(checked.stream, checked.corpora)
        run.wait_until_prepared()
        check_run(checked, run, fresh=False)
    if run.is_finished(checked):
        if rank in (None, 0):
            _say(run.repair(checked).notes, console)
            run.write_finished(checked)
        console.print(f"{folder}: this run is finished.", highlight=False, soft_wrap=True)
        return 0
    if nproc is not None:
        announce(checked, console)
        command = ["train", str(recipe), *overrides, "--run-folder", str(folder)]
        return launch(command, num_processes=nproc, logs=run.logs, console=console)

    from tst_megatron.training.pretrain import pretrain, redirect_output_to
    from tst_megatron.training.run_records import clear_log

    if rank is None:
        announce(checked, console)
        rank = _be_the_only_rank()
    if rank == 0:
        run.repair(checked)
    _say(clear_log(run.log(rank)), console)
    console = redirect_output_to(str(run.log(rank)))
    try:
        return pretrain(checked, run, start=start, console=console)
    except (ValueError, OSError) as error:
        # The input was checked above; this is a fault, and `main` takes these for bad input.
        raise RuntimeError("training failed") from error


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


def _say(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _be_the_only_rank() -> int:
    from tst_megatron.training.launch import free_port

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return 0
