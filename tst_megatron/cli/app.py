"""Run the ``tst-megatron`` command line: all commands by name, and what an error ends in.

The exit statuses are in ``system/exit_status.py``.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron import __version__
from tst_megatron.cli.bench import bench_app
from tst_megatron.cli.compare import compare
from tst_megatron.cli.data.making import data_app
from tst_megatron.cli.data.reading import add_reading_commands
from tst_megatron.cli.hf.audit import audit
from tst_megatron.cli.hf.evaluate import evaluate, evaluate_data
from tst_megatron.cli.hf.models import export, generate, import_, quantize
from tst_megatron.cli.nodes import doctor, preflight, preflight_verdict
from tst_megatron.cli.plan import plan
from tst_megatron.cli.recipes import check, params
from tst_megatron.cli.runs import branch, checkpoint_app, status, train
from tst_megatron.cli.sweep import sweep
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system.exit_status import BAD_INPUT, FAILED, STOPPED
from tst_megatron.system.processes.lock import InUse
from tst_megatron.training.console import tell

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pre-train Qwen3-family MoE models on Megatron-Core with Token-Superposition Training.",
)
add_reading_commands(data_app)
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")
app.command()(export)
app.command("import")(import_)
app.command()(generate)
app.command()(check)
app.command()(train)
app.command()(branch)
app.command()(params)
app.command()(plan)
app.command()(evaluate)
app.command()(evaluate_data)
app.command()(quantize)
app.command()(status)
app.command()(compare)
app.command()(audit)
app.command()(sweep)
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
            # What is left of it ends without help.
            tell(said)
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
def quickstart(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("quickstart"),
    short: Annotated[
        bool, typer.Option("--short", help="A few steps only: shows the chain, learns nothing.")
    ] = False,
    is_compared: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Train a toy with and without superposition instead, and compare: ten minutes.",
        ),
    ] = False,
) -> None:
    """See the whole chain in minutes: text, tokenizer, both phases, export, generation."""
    if is_compared:
        from tst_megatron.cli.quickstart.two_arms import quickstart_two_arms as run
    else:
        from tst_megatron.cli.quickstart.chain import quickstart as run

    raise typer.Exit(run(folder, short=short, console=Console()))
