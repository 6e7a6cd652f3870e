"""``tst-megatron check``: a recipe before it waits in a queue."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import (
    Overrides,
    RecipePath,
    announce,
    asking_megatron,
    checked_recipe,
    install_host,
    tell,
)
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.system.files import write_beside

if TYPE_CHECKING:
    from tst_megatron.recipe.check.plain import NoTextError, PlainCheck


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
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Leave the text out, which is not prepared yet.")
    ] = False,
) -> None:
    """Check a recipe before it waits in a queue: all problems at once, status 2 if any."""
    from tst_megatron.recipe.check.plain import NoTextError

    console = Console()
    if no_data:
        if run is not None or environment is not None or starting:
            raise ValueError(
                "--no-data: a start needs its text. Leave --no-data out, or --run-folder, "
                "--environment and --starting"
            )
        _check_without_text(recipe, overrides, nproc, console)
        return
    try:
        checked = checked_recipe(recipe, overrides, nproc)
    except NoTextError as error:
        _check_the_rest(error, console)
        raise
    # They import torch, and a recipe that is refused does not need it.
    from tst_megatron.training.run.folder import RunFolder
    from tst_megatron.training.run.records import notes_of
    from tst_megatron.training.run.start import plan_start

    start, user = None, None
    if run is not None:
        folder = RunFolder(run)
        user = folder.user()
        with folder.held(say=tell) if starting and run.exists() else nullcontext():
            start = plan_start(checked, folder)
    else:
        _check_weights(checked.arguments)
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
    tell(_this_machine(checked.recipe.profile, checked.world_size))
    console.print("No problem found.", style="green")


UNKNOWN = (
    "not known without the text: how often it is read, whether its held-out part is enough for "
    "eval-iters, and whether its tokenizer fits the model"
)


def _check_without_text(
    recipe: Path, overrides: list[str] | None, nproc: int | None, console: Console
) -> None:
    """Check everything of a recipe but its text."""
    from tst_megatron.recipe.check.plain import check_plainly

    loaded = load_recipe(recipe, overrides or [])
    _show_rest(check_plainly(loaded, world_size=nproc, has_text=False), console)
    console.print("No problem found in the rest.", style="green")


def _check_the_rest(error: NoTextError, console: Console) -> None:
    """Of a recipe whose text is missing, say what else there is to say.

    Raises:
        RecipeError: something else is wrong too; with all of it.
    """
    try:
        _show_rest(error.plain, console)
    except RecipeError as more:
        raise RecipeError([*error.problems, *more.problems]) from None


def _show_rest(plain: PlainCheck, console: Console) -> None:
    from tst_megatron.hf.export_warnings import export_warnings
    from tst_megatron.recipe.check.megatron_arguments import NO_TOKENIZER
    from tst_megatron.training.check import validated

    with asking_megatron():
        install_host(plain.recipe.profile)
        arguments, _, notes = validated(plain)
        _check_weights(arguments)
    announce(plain, console)
    for note in notes:
        tell(note)
    for warning in export_warnings(arguments):
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    tell(_this_machine(plain.recipe.profile, plain.world_size))
    tell(UNKNOWN)
    if plain.values.vocab_size is None:
        tell(f"not known either: the vocabulary, taken to be {NO_TOKENIZER:,} for this check")


def _check_weights(arguments: argparse.Namespace) -> None:
    """Look at the weights that the first start of a run takes; with a folder of its own it may not.

    Raises:
        RecipeError: they are not there, or not those of this model.
    """
    if arguments.pretrained_checkpoint:
        from tst_megatron.training.run.pretrained import pretrained_problems

        if problems := pretrained_problems(arguments):
            raise RecipeError(problems)


def _this_machine(profile: str | None, num_ranks: int) -> str:
    """Whether the machine that a recipe is checked on could run it, in a line."""
    from tst_megatron.megatron.cpu.device import why_not_here

    reason = why_not_here(profile, num_ranks=num_ranks)
    ranks = "1 rank" if num_ranks == 1 else f"{num_ranks} ranks"
    return f"this machine could run it, with {ranks}" if reason is None else f"not here: {reason}"
