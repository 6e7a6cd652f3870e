"""Check a recipe without importing Megatron or torch, in a second or two.

``check_plainly`` asks every rule in ``rules/`` and looks at the texts (``texts.py``). It reports
all problems at once. ``training/check/check_recipe.py`` then asks Megatron itself.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tst_megatron.data.stream.corpora import (
    Corpus,
    leak_warnings,
    missing_texts,
    needed_lines,
)
from tst_megatron.data.stream.plan import StreamPlan
from tst_megatron.megatron.cpu.arguments import ARGUMENTS
from tst_megatron.recipe.check.checked import plan_lines
from tst_megatron.recipe.check.texts import look_at_texts
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.learning_rate import LearningRate
from tst_megatron.recipe.profiles import PROFILES, given_by
from tst_megatron.recipe.recipe import Recipe, RecipeError
from tst_megatron.recipe.rules.async_saves import async_save
from tst_megatron.recipe.rules.decided_elsewhere import key_problems
from tst_megatron.recipe.rules.defaults import NEEDED, default_warnings
from tst_megatron.recipe.rules.gpu_features import gpu_feature_problems
from tst_megatron.recipe.rules.learning_rate import (
    learning_rate_problems,
    learning_rate_warnings,
)
from tst_megatron.recipe.rules.no_effect import no_effect_warnings
from tst_megatron.recipe.rules.numbers import number_problems
from tst_megatron.recipe.rules.packages import package_remarks
from tst_megatron.recipe.rules.parallel_sizes import (
    context_parallel_problems,
    parallel_problems,
    smallest_world_size,
)
from tst_megatron.recipe.rules.refusals import refusals
from tst_megatron.recipe.rules.tst import (
    linear_loss_problems,
    reset_problems,
    schedule_problems,
    tst_problems,
)
from tst_megatron.schedule import Schedule, entry_problems
from tst_megatron.system.processes import ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainCheck:
    """A recipe in which nothing is wrong that can be seen without Megatron."""

    recipe: Recipe
    megatron: dict[str, Any]
    """Megatron's keys and values, as ``with_profile`` merges them."""
    flags: tuple[str, ...]
    """Megatron's command line, without what the text decides."""
    values: argparse.Namespace
    """What the flags come to before Megatron's validation, which rewrites them."""
    schedule: Schedule
    corpora: tuple[Corpus, ...]
    """Empty where the text was left out."""
    stream: StreamPlan | None
    """None where the text was left out."""
    world_size: int
    rate: LearningRate
    known: Flags
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """Of this environment, which may not be the job's."""

    def plan(self) -> list[str]:
        """Describe the run as far as that is known without its text, a line each."""
        needed = needed_lines(
            self.recipe.data,
            self.schedule,
            unit_chunks=self.recipe.tst.unit_chunks(),
            max_epochs=self.recipe.tst.max_epochs,
        )
        return [*plan_lines(self.recipe.tst, self.schedule, needed, self.rate), *self.notes]


class NoTextError(RecipeError):
    """Raised if the only problem that was found is that the text of a recipe is missing."""

    def __init__(self, problems: Sequence[str], plain: PlainCheck) -> None:
        """Keep what is known of the recipe without its text."""
        super().__init__(problems)
        self.plain = plain


def check_plainly(
    recipe: Recipe, *, world_size: int | None = None, has_text: bool = True
) -> PlainCheck:
    """Check everything of a recipe that needs neither Megatron nor torch.

    Args:
        recipe: as ``load_recipe`` read it.
        world_size: ranks of the job. Without it: those of the environment, or else the fewest that
            hold the model.
        has_text: False leaves the prepared folders out.

    Raises:
        RecipeError: with every problem that was found.
    """
    parts = _Parts.of(recipe, world_size)
    rates, rate = learning_rate_problems(parts.values, parts.given)
    problems = _recipe_problems(parts, rates)
    schedule = _schedule(recipe, parts.values, problems)
    if schedule:
        problems += schedule_problems(recipe.tst, parts.values, schedule)
    if not recipe.data and not has_text:
        problems.append("data: is missing. Name the folders that the text will be in")
    texts: list[str] = []
    corpora: list[Corpus] = []
    stream: StreamPlan | None = None
    if has_text:
        corpora, stream = look_at_texts(recipe, parts.values, schedule, texts)
    # Only if texts are missing and nothing else is wrong is the rest shown to Megatron.
    is_only_missing = recipe.data and len(texts) <= len(missing_texts(recipe.data))
    if problems or (texts and not is_only_missing):
        raise RecipeError(list(dict.fromkeys([*problems, *texts])))
    assert schedule is not None and rate is not None
    plain = PlainCheck(
        recipe=recipe,
        megatron=parts.megatron,
        flags=(*parts.flags, *parts.save_flags),
        values=parts.values,
        schedule=schedule,
        corpora=tuple(corpora),
        stream=stream,
        world_size=parts.world_size,
        rate=rate,
        known=parts.known,
        warnings=_warnings(parts, rate, schedule, corpora),
        notes=tuple(parts.package_notes),
    )
    if texts:
        raise NoTextError(texts, plain)
    return plain


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """A recipe as the rules read it, with the problems that its reading had."""

    recipe: Recipe
    known: Flags
    megatron: dict[str, Any]
    flags: list[str]
    flag_problems: list[str]
    values: argparse.Namespace
    given: set[str | None]
    """Destinations of the keys that the recipe or its profile has."""
    world_size: int
    save_flags: list[str]
    save_problems: list[str]
    package_problems: list[str]
    package_notes: list[str]

    @classmethod
    def of(cls, recipe: Recipe, world_size: int | None) -> _Parts:
        known = Flags(argument_parser())
        megatron = with_profile(recipe, known)
        flags, flag_problems = known.convert(megatron)
        values = known.parse(megatron)
        given = {known.destination(key) for key, value in megatron.items() if value is not None}
        save_flags, save_problems = async_save(recipe, values, given)
        package_problems, package_notes = package_remarks(recipe, values)
        return cls(
            recipe=recipe,
            known=known,
            megatron=megatron,
            flags=flags,
            flag_problems=flag_problems,
            values=values,
            given=given,
            world_size=world_size or _world_size_of_environment() or smallest_world_size(values),
            save_flags=save_flags,
            save_problems=save_problems,
            package_problems=package_problems,
            package_notes=package_notes,
        )


def _recipe_problems(parts: _Parts, rates: Sequence[str]) -> list[str]:
    """List everything that is wrong with the keys of a recipe, in the order of the rules."""
    recipe, values, known = parts.recipe, parts.values, parts.known
    numbers = number_problems(values, parts.given)
    return [
        # What could not be read.
        *recipe.problems,
        *parts.flag_problems,
        *(f"{key}: is missing" for key in NEEDED if known.destination(key) not in parts.given),
        # Each number in itself.
        *numbers,
        *rates,
        # The tst block.
        *tst_problems(recipe.tst),
        *reset_problems(recipe.tst, values),
        *linear_loss_problems(recipe.tst, values),
        # Keys with each other.
        *key_problems(recipe, values),
        *([] if _names_sizes(numbers) else parallel_problems(values, parts.world_size)),
        *refusals(recipe, values),
        *gpu_feature_problems(recipe, values),
        *context_parallel_problems(recipe, values),
        *parts.save_problems,
        *parts.package_problems,
    ]


def _warnings(
    parts: _Parts, rate: LearningRate, schedule: Schedule, corpora: Sequence[Corpus]
) -> tuple[str, ...]:
    known, recipe = parts.known, parts.recipe
    own = {known.destination(key) for key, value in recipe.megatron.items() if value is not None}
    return (
        *default_warnings(known, parts.given, parts.values),
        *learning_rate_warnings(rate, schedule),
        *no_effect_warnings(parts.values, own),
        *leak_warnings(corpora),
    )


def with_profile(recipe: Recipe, known: Flags) -> dict[str, Any]:
    """Merge Megatron's keys of a run: the profile's, then the recipe's, then the CPU host's.

    Later ones override earlier ones.
    """
    profile = recipe.profile if recipe.profile in PROFILES else None
    given = given_by(profile, recipe.megatron, known)
    # An empty key is one that the recipe leaves to others.
    own = {k: v for k, v in recipe.megatron.items() if v is not None or k not in given}
    megatron = {**given, **own}
    return known.overlay(megatron, ARGUMENTS) if profile == "cpu" else megatron


def _world_size_of_environment() -> int | None:
    """Return a rank's world size. Slurm's number of tasks does not count: any shell has it."""
    try:
        return ranks.number_of(os.environ, "WORLD_SIZE")
    except ValueError as error:
        raise RecipeError([str(error)]) from None


SIZES = ("size", "num-layers", "num-experts", "num-query-groups", "num-attention-heads", "seq-")


def _names_sizes(problems: Sequence[str]) -> bool:
    """Tell whether a size is wrong in itself, which makes a check of its divisors pointless."""
    return any(word in problem.partition(":")[0] for problem in problems for word in SIZES)


def _schedule(recipe: Recipe, values: argparse.Namespace, problems: list[str]) -> Schedule | None:
    """Return the phases. Without the steps or sizes of a run, check at least the entries."""
    sizes = (values.train_iters, values.seq_length, values.global_batch_size)
    if all(size and size > 0 for size in sizes):
        schedule: Schedule | None = _attempt(recipe.schedule, "tst", problems)
        return schedule
    entries = _attempt(recipe.tst.entries, "tst", problems) or []
    problems += [f"tst: {problem}" for problem in entry_problems(entries)] if entries else []
    return None


def _attempt(make: Callable[[], Any], key: str, problems: list[str]) -> Any:
    try:
        return make()
    except (ValueError, TypeError) as error:
        problems.append(f"{key}: {error}")
        return None
