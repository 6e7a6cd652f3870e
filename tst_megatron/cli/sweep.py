"""Train a grid of recipes, and the paper's arms: the command ``tst-megatron sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import WIDTH_OF_A_FILE, Overrides, RecipePath, outside_runs
from tst_megatron.system.exit_status import STOPPED
from tst_megatron.training.console import tell

Output = Annotated[
    Path,
    typer.Option(
        help="Folder of the sweep. An existing one is continued, and may get more runs.",
        show_default=False,
        callback=outside_runs,
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE,...",
        help="A run for each value, and for each combination of several such options.",
    ),
]
Arms = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", help="Arms made from the recipe; docs/sweeps.md lists them."),
]
Seeds = Annotated[
    int, typer.Option(min=1, help="Runs of each arm, with seeds from the recipe's on.")
]
ShareTrunks = Annotated[
    bool, typer.Option("--share-trunks", help="Train the steps that runs have in common once.")
]
AtOnce = Annotated[
    int | None, typer.Option(min=1, help="Runs that train at the same time; default: 1.")
]
Ranks = Annotated[
    int | None,
    typer.Option(min=1, help="Ranks of each run; default: the fewest that hold the model."),
]


def sweep(
    recipe: RecipePath,
    output: Output,
    overrides: Overrides = None,
    grid: Values = None,
    arms: Arms = None,
    seeds: Seeds = 1,
    share_trunks: ShareTrunks = False,
    at_once: AtOnce = None,
    nproc: Ranks = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Write and show the plan, and train nothing.")
    ] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Write a script that submits the runs to Slurm.")
    ] = False,
) -> None:
    """Train many variants of a recipe, here in turns or on Slurm.

    The recipes, the plan and the runs are in one folder. The same command continues a sweep.
    """
    from tst_megatron.sweep.command import Options
    from tst_megatron.sweep.command import sweep as run_sweep

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    options = Options(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        grid=tuple(grid or ()),
        seeds=seeds,
        arms=arms,
        share_trunks=share_trunks,
        output=output,
        at_once=at_once,
        nproc=nproc,
        plan_only=plan,
        slurm=slurm,
    )
    try:
        status = run_sweep(options, console)
    except KeyboardInterrupt:
        # While runs train, Ctrl-C is passed on to them.
        tell("stopped before training began")
        status = STOPPED
    raise typer.Exit(status)
