"""Look at the two places of a branch, before anything is made: the trunk, and the output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.folder import checkpoint_of, list_checkpoints, step_of
from tst_megatron.checkpoint.outputs import check_output
from tst_megatron.checkpoint.retention import always_kept
from tst_megatron.checkpoint.run_files import is_run, run_of
from tst_megatron.checkpoint.whole import problems as damages
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.recipe import Recipe, RecipeError
from tst_megatron.system.files import check_not_claimed
from tst_megatron.system.paths import is_there
from tst_megatron.system.records import Damaged
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.identity import values_of
from tst_megatron.training.run.records import read_resolved


def trunk_of(path: Path) -> tuple[RunFolder, dict[str, Any]]:
    """Return the run that a path leads to, and its identity.

    Args:
        path: a run folder, or its ``checkpoints/``.

    Raises:
        RecipeError: it is no run's, or the run does not say any more what it is.
    """
    trunk = RunFolder(run_of(path))
    if not trunk.path.is_dir():
        raise RecipeError([f"{path}: there is no such folder. Give the run folder of the trunk"])
    if not trunk.is_prepared():
        raise RecipeError(
            [f"{path}: is no run ({trunk.resolved.name} is missing). Give the folder of a run"]
        )
    try:
        return trunk, read_resolved(trunk.resolved)
    except Damaged as error:
        raise RecipeError(
            [f"{trunk.resolved}: {error}, and it says what the trunk is. Bring it back"]
        ) from error


def place_problems(
    trunk: RunFolder, before: Mapping[str, Any], recipe: Recipe, step: int, output: Path
) -> list[str]:
    """List what can be seen at once and stands against a branch, a sentence each.

    Args:
        trunk: the run that is to be branched.
        before: its identity.
        recipe: of the branch.
        step: of the trunk, at which the branch is to begin.
        output: the folder that is to be made.
    """
    found = _output_problems(output) + _checkpoint_problems(trunk, before, step)
    num_steps = recipe.megatron.get("train-iters")
    if isinstance(num_steps, int) and step >= num_steps:
        found.append(
            f"train-iters: {num_steps} steps end at step {num_steps}, and the branch begins after "
            f"step {step}. Give train-iters above {step}"
        )
    if recipe.profile != before.get("profile"):
        found.append(
            f"profile: the trunk was trained with {before.get('profile')!r}, and a branch cannot "
            f"change that to {recipe.profile!r}. It decides layers and arithmetic"
        )
    return found


def _output_problems(output: Path) -> list[str]:
    real = Path(os.path.realpath(output))
    above = next((folder for folder in real.parents if is_run(folder)), None)
    if above is not None:
        return [f"--output: {output} is inside the run {above}. Name a folder beside it"]
    if is_there(real) and not real.is_dir():
        return [f"--output: {output} is a file. Name a folder that does not exist"]
    if real.is_dir() and any(real.iterdir()):
        what = "is a run already" if is_run(real) else "is not empty"
        return [f"--output: {output} {what}. Name a folder that does not exist"]
    try:
        check_output(output)
        check_not_claimed(output)
    except ValueError as error:
        return [f"--output: {error}"]
    return []


def _checkpoint_problems(trunk: RunFolder, before: Mapping[str, Any], step: int) -> list[str]:
    checkpoint = checkpoint_of(trunk.checkpoints, step)
    if not is_there(checkpoint):
        return [
            f"--step: {trunk.path} has no checkpoint of step {step}. {_those_there(trunk)}. "
            f"{_always_kept(before)}"
        ]
    has_manifest = bool(before.get("verify-integrity"))
    if found := damages(checkpoint, has_manifest=has_manifest):
        return [
            f"--step: {checkpoint} is not whole ({'; '.join(found)}). {_those_there(trunk)}: "
            "branch at another step"
        ]
    return []


def _those_there(trunk: RunFolder) -> str:
    steps = sorted(map(step_of, list_checkpoints(trunk.checkpoints)))
    if not steps:
        return "It has none"
    return f"It has checkpoints of the steps {', '.join(map(str, steps))}"


def _always_kept(before: Mapping[str, Any]) -> str:
    """Say which checkpoints of a run with such an identity stay, whatever its keeping rule."""
    values = values_of(before, Flags(argument_parser()))
    switch = sum(num_steps for _, num_steps in before["phases"][:-1])
    steps = sorted(always_kept(values, switch_step=switch))
    named = f" (here {', '.join(map(str, steps))})" if steps else ""
    return (
        "A run always saves and keeps its last superposition step, the step at which its WSD decay "
        f"starts{named}, and every save-retain-interval steps"
    )
