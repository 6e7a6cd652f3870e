"""``tst-megatron check``: a recipe before it waits in a queue."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.commands.shared import Overrides, RecipePath, announce, checked_recipe, tell
from tst_megatron.files import write_beside


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
    console = Console()
    checked = checked_recipe(recipe, overrides, nproc)
    # They import torch, and a recipe that is refused does not need it.
    from tst_megatron.training.run_folder import RunFolder
    from tst_megatron.training.run_records import notes_of
    from tst_megatron.training.start import plan_start

    start, user = None, None
    if run is not None:
        folder = RunFolder(run)
        user = folder.user()
        with folder.held(say=tell) if starting and run.exists() else nullcontext():
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
            tell(note)
        if user is not None and not starting:
            tell(f"{run}: in use by {user}. A start is refused until that has ended")
    console.print("No problem found.", style="green")
