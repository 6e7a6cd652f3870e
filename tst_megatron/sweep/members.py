"""Make the recipes of a sweep's members: every arm of the grid, once for each seed.

All members read the stream of tokens in one unit, which every bag size divides. So those of one
seed read one permutation of the text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tst_megatron.recipe.check.plain import NoTextError, PlainCheck, check_plainly
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.recipe import Recipe, RecipeError, load_recipe
from tst_megatron.sweep.arms import Arm, Keys
from tst_megatron.sweep.grid import Grid, combination_name, combinations, unique
from tst_megatron.sweep.keys import flat_keys, from_anywhere, words_of
from tst_megatron.training.run.identity import OF_THE_PHASES


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One run of a sweep, before anything is written."""

    name: str
    """Of its recipe and its run folder."""
    arm: str
    """The name without the seed: members of one arm differ in the seed alone."""
    seed: int
    meaning: str
    """The arm in a sentence."""
    recipe: Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """All runs of a sweep."""

    base: Recipe
    """What the members build on: the given recipe, with what the command line gave."""
    unit_chunks: int
    """Chunks of a unit of the stream (U), the same for all."""
    runs: tuple[Member, ...]
    notes: tuple[str, ...]
    """Arms that were left out, a sentence each."""


def make_members(
    path: Path,
    overrides: Sequence[str],
    *,
    grid: Grid,
    arms: Sequence[Arm],
    num_seeds: int,
    known: Collection[str] = (),
) -> Members:
    """Make every run of a sweep from one recipe.

    Args:
        path: of the recipe.
        overrides: ``key=value`` words that win over it in every run.
        grid: each combination of its values is an arm.
        arms: each is made for the combinations of the keys that it depends on; none makes the
            combinations alone.
        num_seeds: runs of each arm.
        known: arms that the sweep has already; of two arms that are the same run, such a one stays.

    Raises:
        RecipeError: a recipe cannot be read, or the seeds are no numbers.
    """
    base = from_anywhere(load_recipe(path, overrides))
    found = list(_arms(path, overrides, grid, arms))
    unit = _unit(base, [recipe for _, _, recipe in found])
    first = _first_seed(base)
    base = replace(base, tst=replace(base.tst, stream_unit_bags=unit))
    notes: list[str] = []
    named: dict[str, tuple[str, Recipe]] = {}
    # Known arms first, and otherwise in their order.
    for name, meaning, recipe in sorted(found, key=lambda each: each[0] not in known):
        recipe = replace(recipe, tst=replace(recipe.tst, stream_unit_bags=unit))
        same = next((n for n, (_, other) in named.items() if _is_same(other, recipe)), None)
        if same is not None:
            notes.append(f"{name} would be the same run as {same}, and is left out")
        else:
            named[unique(name, named)] = (meaning, recipe)
    runs = [
        Member(
            name=f"{arm}_seed-{seed}",
            arm=arm,
            seed=seed,
            meaning=meaning,
            recipe=replace(recipe, megatron={**recipe.megatron, "seed": seed}),
        )
        for seed in range(first, first + num_seeds)
        for arm, (meaning, recipe) in named.items()
    ]
    return Members(base=base, unit_chunks=unit, runs=tuple(runs), notes=tuple(notes))


def _arms(
    path: Path, overrides: Sequence[str], grid: Grid, arms: Sequence[Arm]
) -> list[tuple[str, str, Recipe]]:
    """List (name, meaning, recipe) of every arm, the grid's combinations outside."""
    if not arms:
        return [
            (combination_name(keys) or path.stem, "", _load(path, overrides, keys))
            for keys in combinations(grid)
        ]
    found = []
    for arm in arms:
        for keys in combinations(grid, arm.own):
            given = _load(path, overrides, keys)
            recipe = _load(path, overrides, {**keys, **_keys_of(arm, given)})
            parts = [part for part in (combination_name(keys), arm.name) if part]
            found.append(("_".join(parts), arm.meaning, recipe))
    return found


def _load(path: Path, overrides: Sequence[str], keys: Mapping[str, Any]) -> Recipe:
    return from_anywhere(load_recipe(path, [*overrides, *words_of({**_opened(keys), **keys})]))


def _opened(keys: Mapping[str, Any]) -> Keys:
    """Return values for the other keys that give phases, so that they do not contradict these.

    A recipe gives its phases by a share, by steps or by a schedule, and a grid may use another way.
    """
    if "tst.schedule" in keys:
        others = {"bag-size": 1, "superposition-fraction": 0.0, "superposition-steps": None}
    elif "tst.superposition-steps" in keys:
        others = {"superposition-fraction": 0.0, "schedule": None}
    elif "tst.superposition-fraction" in keys:
        others = {"superposition-steps": None, "schedule": None}
    else:
        others = {}
    return {f"tst.{key}": value for key, value in others.items()}


def _keys_of(arm: Arm, given: Recipe) -> Keys:
    try:
        return arm.keys(given)
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        # It has no steps or phases to count. The check of the recipe itself says why.
        return {}


def _unit(base: Recipe, recipes: Sequence[Recipe]) -> int:
    """Return the unit of the given recipe if every bag size divides it.

    Otherwise it is the least common multiple of the bag sizes.
    """
    sizes = {size for recipe in recipes for size, _ in recipe.tst.entries() if size >= 1}
    own = base.tst.stream_unit_bags
    if own is not None and own >= 1 and all(own % size == 0 for size in sizes):
        return own
    return math.lcm(*sizes)


def _first_seed(recipe: Recipe) -> int:
    seed = recipe.megatron.get("seed")
    if seed is None:
        return int(argument_parser().get_default("seed"))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RecipeError([f"seed: {seed!r} is not a whole number"])
    return seed


def _is_same(one: Recipe, other: Recipe) -> bool:
    """Tell whether two recipes are of one run, in whatever keys its phases were given."""
    return not (one.problems or other.problems) and _decisive(one) == _decisive(other)


def _decisive(recipe: Recipe) -> Keys:
    keys = flat_keys(recipe)
    try:
        phases = recipe.schedule().phases
    except (ValueError, KeyError, TypeError):
        return keys
    of_phases = [f"tst.{key}" for key in OF_THE_PHASES]
    return {**{key: keys[key] for key in keys if key not in of_phases}, "phases": phases}


def check_members(
    members: Sequence[Member], *, world_size: int | None, needs_text: bool = True
) -> tuple[dict[str, PlainCheck], list[str]]:
    """Check the recipes of all runs without Megatron, and list every problem of every arm.

    Args:
        members: all runs.
        world_size: ranks of each run; None takes the fewest that hold its model.
        needs_text: False passes where only the prepared text is missing.

    Returns:
        What was found, by the name of the run, and what is missing of the text.

    Raises:
        RecipeError: with all problems, each with the arms that have it.
    """
    checks: dict[str, PlainCheck] = {}
    problems: dict[str, dict[str, None]] = {}
    missing: dict[str, None] = {}
    for member in members:
        try:
            checks[member.name] = check_plainly(member.recipe, world_size=world_size)
        except NoTextError as error:
            checks[member.name] = error.plain
            missing |= dict.fromkeys(error.problems)
        except RecipeError as error:
            for problem in error.problems:
                problems.setdefault(problem, {})[member.arm] = None
    if missing and needs_text:
        arms = dict.fromkeys(member.arm for member in members if member.name in checks)
        for problem in missing:
            problems[problem] = problems.get(problem, {}) | arms
    if problems:
        all_arms = len({member.arm for member in members})
        raise RecipeError([_said(each, list(problems[each]), all_arms) for each in problems])
    return checks, list(missing)


def _said(problem: str, arms: Sequence[str], num_arms: int) -> str:
    if len(arms) == num_arms > 1:
        return f"all {num_arms} arms: {problem}"
    return f"{', '.join(arms)}: {problem}"
