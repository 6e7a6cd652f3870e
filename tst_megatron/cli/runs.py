"""Train runs and look after them: ``train``, ``status``, ``checkpoint`` and ``branch``."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import WIDTH_OF_A_FILE, Overrides, RecipePath, outside_runs
from tst_megatron.system.exit_status import BAD_INPUT, STOPPED
from tst_megatron.training.console import announce, tell

if TYPE_CHECKING:
    from tst_megatron.cli.views.status import RunStatus

checkpoint_app = typer.Typer(no_args_is_help=True, help="Look after a run's checkpoints.")


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
    from tst_megatron.training.train import train_run

    folder = run or Path("runs") / f"{recipe.resolve().parent.name}-{recipe.stem}"
    try:
        status = train_run(recipe, overrides or [], folder, nproc=nproc, fresh=fresh)
    except KeyboardInterrupt:
        # A rank takes Ctrl-C as a signal to stop, so no rank was started.
        tell("stopped before training began")
        status = STOPPED
    raise typer.Exit(status)


def status(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or checkpoints in them.", show_default=False),
    ],
    is_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per run, a line each.")
    ] = False,
) -> None:
    """Say how runs stand: state, step, phase, losses, speed, time left, checkpoint, job starts."""
    from tst_megatron.cli.views.status import run_status

    found, problems = [], []
    for run in runs:
        try:
            found.append(run_status(run, now=time.time()))
        except (ValueError, FileNotFoundError) as error:
            # The others are shown all the same.
            problems.append(str(error))
    _show(found, is_json=is_json)
    if problems:
        raise ValueError("\n".join(problems))


def _show(found: Sequence[RunStatus], *, is_json: bool) -> None:
    from tst_megatron.cli.views.show_status import as_keys, sheet, table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    if is_json:
        for each in found:
            typer.echo(json.dumps(as_keys(each)))
    elif len(found) == 1:
        console.print(sheet(found[0]))
    elif found:
        console.print(table(found))


def branch(
    run: Annotated[
        Path,
        typer.Argument(
            help="The trunk: the run folder of a run, or its checkpoints/.", show_default=False
        ),
    ],
    step: Annotated[
        int, typer.Option(min=1, help="Begin after this step, of which there is a checkpoint.")
    ],
    output: Annotated[Path, typer.Option(help="The new run folder.", callback=outside_runs)],
    overrides: Overrides = None,
) -> None:
    """Make a new run that goes on from a step of another, with changes from there on.

    Length, learning rate, weight decay, clipping, phases to come and resets at a switch to come may
    change. What was read stays read, and everything else stays as it was.
    """
    from tst_megatron.training.branch.branch import make_branch

    console = Console()
    made = make_branch(run, step, output, overrides or [], console=console)
    announce(made.checked, console)
    for note in made.notes:
        tell(note)
    left = made.checked.schedule.num_steps - step
    tell(f"{output}: a branch of {run} at step {step:,}, with {left:,} steps to train. Train it:")
    words = ("tst-megatron", "train", str(output / "recipe.yaml"), "--run-folder", str(output))
    tell(f"  {shlex.join(words)}")
    if made.checked.world_size > 1:
        ranks = made.checked.world_size
        tell(f"on {ranks} ranks: with --nproc {ranks} on one machine, or as a job on a cluster")


@checkpoint_app.command("verify")
def checkpoint_verify(
    folder: Annotated[
        Path, typer.Argument(help="A run, its checkpoints/, one iter_ folder or an import.")
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="What a start looks at; read no tensor.")
    ] = False,
) -> None:
    """Read checkpoints, prove their content and say which are whole; status 2 if one is not."""
    from tst_megatron.cli.views.checkpoints import verify

    raise typer.Exit(0 if verify(folder, deep=not quick, console=Console()) else BAD_INPUT)
