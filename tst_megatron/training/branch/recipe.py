"""Make the recipe of a branch: the trunk's, with changes, in one file without a base."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tst_megatron.recipe.recipe import Recipe, load_recipe
from tst_megatron.recipe.tst_config import TSTConfig, read_tst_block
from tst_megatron.training.run.identity import NOT_MEGATRONS, OF_THE_PHASES

_BLOCKS = ("profile", "data", "tst")


def recipe_of_branch(trunk: Mapping[str, Any], changes: Sequence[str]) -> Recipe:
    """Return the trunk's recipe with changes.

    What is not named stays as it was, in steps: a switch does not move because ``train-iters``
    changes and the trunk's recipe gave a share of the steps.

    Args:
        trunk: the identity of the trunk (``run/identity.py``).
        changes: ``key=value`` words, as for ``train``.

    Raises:
        RecipeError: a change is not ``key=value``. What else is wrong is in ``Recipe.problems``.
    """
    named = _phase_keys_of(changes)
    base = {key: value for key, value in trunk.items() if key not in NOT_MEGATRONS}
    base |= {key: trunk.get(key) for key in _BLOCKS}
    before = read_tst_block(trunk.get("tst") or {}, [])
    if named:
        base["tst"] = _open_to(named, before, trunk["phases"]).as_keys()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trunk.yaml"
        path.write_text(yaml.safe_dump(base, sort_keys=False), encoding="utf-8")
        recipe = load_recipe(path, changes)
    tst = recipe.tst
    if not named:
        tst = _in_steps(tst, trunk["phases"], recipe.megatron.get("train-iters"))
    if tst.stream_unit_bags is None:
        # Its default follows from the phases, which may be others now.
        tst = replace(tst, stream_unit_bags=before.unit_chunks())
    data = {Path(os.path.abspath(path)): weight for path, weight in recipe.data.items()}
    return replace(recipe, tst=tst, data=data)


def text_of_recipe(recipe: Recipe, *, trunk: Path, step: int) -> str:
    """Return the content of a branch's ``recipe.yaml``.

    Args:
        recipe: of the branch.
        trunk: the trunk's folder.
        step: of the trunk, at which the branch begins.
    """
    header = (
        "# A branch, written by `tst-megatron branch`: it goes on where another run was after step "
        f"{step}.\n# That run: {ascii(str(trunk))[1:-1]}\n"
        "# Resume the branch with this file; what may be changed then is in docs/going-on.md.\n"
    )
    body = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)
    return header + body


def _phase_keys_of(changes: Sequence[str]) -> set[str]:
    """Return the keys by which changes say the phases; the whole block says all of them."""
    keys = {change.partition("=")[0] for change in changes}
    if "tst" in keys:
        return set(OF_THE_PHASES)
    return {key for key in OF_THE_PHASES if f"tst.{key}" in keys}


def _open_to(named: set[str], before: TSTConfig, phases: Sequence[Sequence[int]]) -> TSTConfig:
    """Return the trunk's block without the keys that would contradict the named ones."""
    nothing = replace(
        before, bag_size=1, superposition_fraction=0.0, superposition_steps=None, schedule=None
    )
    if "schedule" in named or len(phases) != 2:
        return nothing
    (bag_size, num_steps), _ = phases
    by_share = "superposition-fraction" in named
    return replace(nothing, bag_size=bag_size, superposition_steps=None if by_share else num_steps)


def _in_steps(tst: TSTConfig, phases: Sequence[Sequence[int]], num_steps: Any) -> TSTConfig:
    """Return the block with the phases of the trunk, of which the last takes all steps left."""
    nothing = replace(
        tst, bag_size=1, superposition_fraction=0.0, superposition_steps=None, schedule=None
    )
    *before, _ = phases
    if not before or not isinstance(num_steps, int):
        return nothing
    if len(before) == 1:
        ((bag_size, steps),) = before
        return replace(nothing, bag_size=bag_size, superposition_steps=steps)
    left = num_steps - sum(steps for _, steps in before)
    entries: list[list[float]] = [[bag_size, steps] for bag_size, steps in before]
    return replace(nothing, schedule=[*entries, [1, left]])
