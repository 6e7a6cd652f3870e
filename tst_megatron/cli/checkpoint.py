"""``tst-megatron checkpoint``: look after a run's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import BAD_INPUT

checkpoint_app = typer.Typer(no_args_is_help=True, help="Look after a run's checkpoints.")


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
