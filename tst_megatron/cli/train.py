"""Start or resume training: the command ``tst-megatron train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tst_megatron.cli.shared import Overrides, RecipePath
from tst_megatron.system.exit_status import STOPPED
from tst_megatron.training.console import tell


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
