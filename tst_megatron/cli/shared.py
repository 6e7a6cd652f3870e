"""What several commands take and do first: a recipe, its overrides, its check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.system.outputs import check_output
from tst_megatron.system.packages import collecting_later
from tst_megatron.system.processes.ranks import variables_of_a_rank

if TYPE_CHECKING:
    from tst_megatron.recipe.check.checked import CheckedRecipe
    from tst_megatron.recipe.check.plain import PlainCheck

FAILED = 1
BAD_INPUT = 2

RecipePath = Annotated[Path, typer.Argument(help="Recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Values that win over the recipe's, such as tst.bag-size=4."
    ),
]


def outside_runs(output: Path | None) -> Path | None:
    """The callback of every option and argument that names an output (``check_output``)."""
    if output is not None:
        check_output(output)
    return output


def checked_recipe(recipe: Path, overrides: list[str] | None, nproc: int | None) -> CheckedRecipe:
    """Read a recipe and check it for a job of ``nproc`` ranks, on the host that it names.

    Raises:
        RecipeError: with every problem that was found.
    """
    from tst_megatron.recipe.check.plain import check_plainly
    from tst_megatron.training.check import check_with_megatron
    from tst_megatron.training.run.launch import is_started_here

    loaded = load_recipe(recipe, overrides or [])
    plain = check_plainly(loaded, world_size=nproc)
    # One process of a job is enough; that is the launcher, where there is one.
    is_first = os.environ.get("RANK", "0") == "0" and not is_started_here()
    with asking_megatron():
        install_host(loaded.profile)
        return check_with_megatron(plain, is_rehearsed=is_first)


@contextmanager
def asking_megatron() -> Iterator[None]:
    """Show a person who waits for Megatron's imports that something goes on."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("asking Megatron about the recipe"):
        yield


def install_host(profile: str | None) -> None:
    """Put the CPU host in place for a recipe of its profile, before Megatron is imported.

    Raises:
        RecipeError: this machine has a GPU.
    """
    if profile != "cpu":
        return
    with collecting_later():
        from tst_megatron.megatron.cpu import host
    if not host.is_needed():
        raise RecipeError(
            [
                "profile: cpu on a machine with a GPU. Use profile=null, or hide the GPU with "
                "CUDA_VISIBLE_DEVICES= if the run is meant for the CPU"
            ]
        )
    host.install()


def announce(checked: CheckedRecipe | PlainCheck, console: Console) -> None:
    """Show what the run will do, and what its owner should know before."""
    for line in checked.plan():
        console.print(line, highlight=False, soft_wrap=True)
    for warning in checked.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def tell(line: str) -> None:
    """Print a line as it is, however long, without markup."""
    Console().print(line, highlight=False, markup=False, soft_wrap=True)


def rank_of_environment(nproc: int | None = None) -> int | None:
    """This process's rank, from torchrun's variables or srun's; None where it is no rank.

    The variables of torchrun are set, whichever they came from.

    Args:
        nproc: this command is to start that many ranks, and so is none, whatever the variables
            of the shell it was typed in say.

    Raises:
        RecipeError: the variables contradict each other or are no numbers, or the ranks cannot
            find each other.
    """
    if nproc is not None:
        _refuse_several_commands(nproc)
        return None
    variables, problems = variables_of_a_rank(os.environ)
    if problems:
        raise RecipeError(problems)
    os.environ.update(variables)
    return int(variables["RANK"]) if variables else None


def _refuse_several_commands(nproc: int) -> None:
    """Only the first task of an srun may start ranks; it may be a person's shell."""
    task = os.environ.get("SLURM_PROCID") if "SLURM_STEP_ID" in os.environ else None
    if task not in (None, "0"):
        raise RecipeError(
            [
                f"--nproc {nproc}: this is task {task} of an srun, and every task would start as "
                "many ranks. Leave --nproc out, or give srun --ntasks=1"
            ]
        )
