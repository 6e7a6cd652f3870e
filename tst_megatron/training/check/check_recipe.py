"""Check a recipe before it waits in a queue: every problem that can be found, all at once.

First come the checks that need no Megatron (``recipe/check/plain.py``). Only a recipe without such
a problem is shown to Megatron. Then everything that a start builds is built, as far as that is
possible without a GPU (``rehearse.py``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from tst_megatron.hf.export_warnings import export_warnings, tokenizer_warnings
from tst_megatron.recipe import padding
from tst_megatron.recipe.check.checked import CheckedRecipe
from tst_megatron.recipe.check.megatron_arguments import ask_megatron, fixed_flags
from tst_megatron.recipe.check.plain import PlainCheck, check_plainly
from tst_megatron.recipe.environment import environment_of
from tst_megatron.recipe.recipe import Recipe, RecipeError, load_recipe
from tst_megatron.recipe.rules.packages import profile_problems
from tst_megatron.system.packages import collecting_later
from tst_megatron.training.check.rehearse import rehearse_start
from tst_megatron.training.run.launch import is_started_here


def checked_recipe(recipe: Path, overrides: list[str] | None, nproc: int | None) -> CheckedRecipe:
    """Read a recipe and check it for a job of ``nproc`` ranks, on the host that it names.

    Raises:
        RecipeError: with every problem that was found.
    """
    loaded = load_recipe(recipe, overrides or [])
    plain = check_plainly(loaded, world_size=nproc)
    # One process of a job is enough; that is the launcher, where there is one.
    is_first = os.environ.get("RANK", "0") == "0" and not is_started_here()
    with asking_megatron():
        install_host(loaded.profile)
        return check_with_megatron(plain, is_rehearsed=is_first)


@contextmanager
def asking_megatron() -> Iterator[None]:
    """Show a person that the command is at work while Megatron is imported."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("asking Megatron about the recipe"):
        yield


def install_host(profile: str | None) -> None:
    """Put the CPU host in place for a recipe of its profile, before Megatron is imported.

    On a machine without a GPU, another recipe can be checked and not trained. Packages for GPUs are
    hidden there all the same.

    Raises:
        RecipeError: this machine has a GPU.
    """
    with collecting_later():
        # Importing the host takes seconds (torch), like Megatron, which is imported next.
        from tst_megatron.megatron.cpu import hidden, host
    if profile != "cpu":
        if host.is_needed():
            hidden.hide_packages()
        return
    if not host.is_needed():
        raise RecipeError(
            [
                "profile: cpu on a machine with a GPU. Use profile=null, or hide the GPU with "
                "CUDA_VISIBLE_DEVICES= if the run is meant for the CPU"
            ]
        )
    host.install()


def check_recipe(
    recipe: Recipe, *, world_size: int | None = None, is_rehearsed: bool = False
) -> CheckedRecipe:
    """Check a recipe for a job of ``world_size`` ranks.

    Args:
        recipe: as ``load_recipe`` read it.
        world_size: ranks of the job; None takes that of the environment (``WORLD_SIZE``), or the
            smallest that fits the parallel sizes.
        is_rehearsed: also build what a start builds, which takes a second. The commands do it, in
            one process of a job.

    Raises:
        RecipeError: with every problem that was found.
    """
    plain = check_plainly(recipe, world_size=world_size)
    return check_with_megatron(plain, is_rehearsed=is_rehearsed)


def check_with_megatron(plain: PlainCheck, *, is_rehearsed: bool) -> CheckedRecipe:
    """Show Megatron a recipe in which nothing else is wrong.

    Args:
        plain: the check of a recipe whose text exists.
        is_rehearsed: as ``check_recipe`` takes it.

    Raises:
        RecipeError: with Megatron's first complaint.
    """
    assert plain.stream is not None
    recipe = plain.recipe
    arguments, flags, notes = validated(plain, is_rehearsed=is_rehearsed)
    return CheckedRecipe(
        recipe=recipe,
        flags=tuple(flags),
        schedule=plain.schedule,
        corpora=plain.corpora,
        stream=plain.stream,
        world_size=plain.world_size,
        arguments=arguments,
        profile_values={k: v for k, v in plain.megatron.items() if recipe.megatron.get(k) != v},
        known=plain.known,
        environment=environment_of(recipe.profile, plain.megatron, plain.known),
        rate=plain.rate,
        notes=(*plain.notes, *notes),
        warnings=(
            *plain.warnings,
            *_padding(plain.values, arguments),
            *export_warnings(arguments),
            *tokenizer_warnings(plain.corpora[0].manifest.tokenizer_path, arguments),
        ),
    )


def validated(
    plain: PlainCheck, *, is_rehearsed: bool = True
) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return Megatron's arguments of a recipe, with its text or without.

    Args:
        plain: what was found without Megatron.
        is_rehearsed: as ``check_recipe`` takes it.

    Returns:
        (validated arguments, Megatron's command line, what could not be found out here).

    Raises:
        RecipeError: with Megatron's first complaint.
    """
    if problems := profile_problems(plain.recipe, plain.values):
        raise RecipeError(problems)
    manifest = plain.corpora[0].manifest if plain.corpora else None
    flags = [*plain.flags, *fixed_flags(plain.values, manifest)]
    arguments = ask_megatron(flags, plain.world_size)
    notes: list[str] = []
    if is_rehearsed:
        is_exact = plain.recipe.profile == "cpu"
        problems, notes = rehearse_start(arguments, plain.recipe.tst, is_exact=is_exact)
        if problems:
            raise RecipeError(problems)
    return arguments, flags, notes


def _padding(values: argparse.Namespace, arguments: argparse.Namespace) -> list[str]:
    """Warn of columns of the softmax that stand for no token."""
    start = values.pretrained_checkpoint
    warning = padding.warning(
        arguments.vocab_size,
        rows=arguments.padded_vocab_size,
        divisor=values.make_vocab_size_divisible_by,
        ranks=values.tensor_model_parallel_size,
        pretrained=Path(start) if start else None,
    )
    return [warning] if warning else []
