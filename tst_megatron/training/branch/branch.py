"""Make a branch of a run: check everything first, and then make its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich.console import Console

from tst_megatron.checkpoint import saved_state
from tst_megatron.checkpoint.folder import checkpoint_of
from tst_megatron.data.stream.corpora import changed_text
from tst_megatron.recipe.check.checked import CheckedRecipe
from tst_megatron.recipe.keys.kinds import SIZE_KEYS
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.training.branch import changes as rules
from tst_megatron.training.branch.folder import NewBranch, make_folder
from tst_megatron.training.branch.recipe import recipe_of_branch, text_of_recipe
from tst_megatron.training.branch.source import place_problems, trunk_of
from tst_megatron.training.check.check_recipe import asking_megatron, check_recipe, install_host
from tst_megatron.training.run.identity import identity
from tst_megatron.training.run.plan import run_plan
from tst_megatron.training.run.start import check_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A branch that was made, and what its owner should know of it."""

    checked: CheckedRecipe
    """Its recipe, checked for the ranks of the trunk, or for another layout that was asked for."""
    notes: tuple[str, ...]
    """A line each."""


def make_branch(
    path: Path, step: int, output: Path, changes: Sequence[str], *, console: Console | None = None
) -> Made:
    """Make a new run that begins at a saved step of another.

    Args:
        path: the trunk's run folder, or its ``checkpoints/``.
        step: of the trunk; it must have a checkpoint of that step.
        output: the folder of the branch, which does not exist or is empty.
        changes: ``key=value`` words, as for ``train``.
        console: shows how far a copy is.

    Raises:
        RecipeError: with every problem that was found; nothing was made.
        ValueError: the trunk changed meanwhile, or another process makes the same output.
        OSError: files cannot be read or written.
    """
    trunk, before = trunk_of(path)
    recipe = recipe_of_branch(before, changes)
    if found := place_problems(trunk, before, recipe, step, output):
        raise RecipeError(found)
    checkpoint = checkpoint_of(trunk.checkpoints, step)
    text = text_of_recipe(recipe, trunk=trunk.path.resolve(), step=step)
    # All that follows imports Megatron, for which the CPU host must be in place.
    with asking_megatron(), TemporaryDirectory() as folder:
        install_host(recipe.profile)
        written = Path(folder) / "recipe.yaml"
        written.write_text(text, encoding="utf-8")
        checked = check_recipe(
            load_recipe(written),
            world_size=_ranks(checkpoint, changes),
            is_rehearsed=True,
        )
        notes = _checked_against(before, checked, checkpoint, step)
    new = NewBranch(
        trunk=trunk,
        checkpoint=checkpoint,
        recipe=text,
        resolved=yaml.safe_dump(identity(checked), sort_keys=False),
        has_manifest=run_plan(checked).saves_manifest,
    )
    notes += make_folder(new, output, console=console)
    return Made(checked=checked, notes=tuple(notes))


def _ranks(checkpoint: Path, changes: Sequence[str]) -> int | None:
    """Return the ranks that saved the trunk's checkpoint; None if the branch is cut otherwise."""
    # Imports Megatron: the CPU host must be in place before.
    from tst_megatron.megatron.distributed_checkpoint.model import pending_rerun

    state = saved_state.read(checkpoint, advice="branch at another step")
    if rerun := pending_rerun(state):
        raise RecipeError(
            [
                f"--step: {checkpoint} was saved to {rerun}, which tells a fault of a node from a "
                "bug. Resume the trunk first, or branch at another step"
            ]
        )
    is_cut_otherwise = any(change.partition("=")[0] in SIZE_KEYS for change in changes)
    return None if is_cut_otherwise else int(state["args"].world_size)


def _checked_against(
    before: Mapping[str, Any], checked: CheckedRecipe, checkpoint: Path, step: int
) -> list[str]:
    """Check that a recipe can go on where the trunk was, and return what its owner should know.

    Raises:
        RecipeError: with all that differs and may not.
    """
    plan = run_plan(checked)
    found = [*rules.problems(before, checked, step), *changed_text(plan.corpora)]
    of_checkpoint: list[str] = []
    try:
        of_checkpoint = check_checkpoint(plan, checkpoint, steps_of_trunk=step)
    except RecipeError as error:
        # What the trunk's recipe says of a key, its checkpoint says again.
        said = {problem.partition(":")[0] for problem in found}
        found += [text for text in error.problems if text.partition(":")[0] not in said]
    if found:
        raise RecipeError(found)
    return rules.remarks(before, checked, step) + of_checkpoint
