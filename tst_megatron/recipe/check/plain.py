"""What can be said of a recipe without importing Megatron or torch: in a second or two."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.stream.corpora import (
    Corpus,
    corpora_problems,
    held_out_problems,
    leak_warnings,
    missing_texts,
    needed_lines,
    open_corpora,
)
from tst_megatron.data.stream.plan import StreamPlan
from tst_megatron.megatron.cpu.arguments import ARGUMENTS
from tst_megatron.recipe.check.checked import plan_lines
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.profiles import PROFILES, given_by
from tst_megatron.recipe.recipe import Recipe, RecipeError
from tst_megatron.recipe.rules.compatibility import (
    async_save,
    combination_problems,
    parallel_problems,
    smallest_world_size,
)
from tst_megatron.recipe.rules.defaults import NEEDED, default_warnings
from tst_megatron.recipe.rules.keys import key_problems
from tst_megatron.recipe.rules.learning_rate import (
    LearningRate,
    learning_rate_problems,
    learning_rate_warnings,
)
from tst_megatron.recipe.rules.no_effect import no_effect_warnings
from tst_megatron.recipe.rules.numbers import number_problems
from tst_megatron.recipe.rules.packages import package_remarks
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
    """Megatron's keys: the profile's, the recipe's over them, the host's last."""
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
        """What the run will do as far as that is known without its text, a line each."""
        needed = needed_lines(
            self.recipe.data,
            self.schedule,
            unit_chunks=self.recipe.tst.unit_chunks(),
            max_epochs=self.recipe.tst.max_epochs,
        )
        return [*plan_lines(self.recipe.tst, self.schedule, needed, self.rate), *self.notes]


class NoTextError(RecipeError):
    """Nothing is wrong with a recipe, as far as can be seen, but that its text is not there."""

    def __init__(self, problems: Sequence[str], plain: PlainCheck) -> None:
        """Keep what is known of the recipe without its text."""
        super().__init__(problems)
        self.plain = plain


def check_plainly(
    recipe: Recipe, *, world_size: int | None = None, has_text: bool = True
) -> PlainCheck:
    """Everything that can be said of a recipe without importing Megatron or torch.

    Args:
        recipe: as ``load_recipe`` read it.
        world_size: as ``check_recipe`` takes it.
        has_text: whether its text is there to be looked at.

    Raises:
        RecipeError: with every problem that was found.
    """
    parser = argument_parser()
    known = Flags(parser)
    megatron = with_profile(recipe, known)
    flags, problems = known.convert(megatron)
    values = known.parse(megatron)
    given = {known.destination(key) for key, value in megatron.items() if value is not None}
    numbers = number_problems(values, given)
    world_size = world_size or _world_size_of_environment() or smallest_world_size(values)
    rates, rate = learning_rate_problems(values, given)
    save_flags, saves = async_save(recipe, values, given)
    lacking, packages = package_remarks(recipe, values)
    problems = [
        *recipe.problems,
        *problems,
        *(f"{key}: is missing" for key in NEEDED if known.destination(key) not in given),
        *numbers,
        *rates,
        *tst_problems(recipe.tst),
        *reset_problems(recipe.tst, values),
        *linear_loss_problems(recipe.tst, values),
        *key_problems(recipe, values),
        *([] if _names_sizes(numbers) else parallel_problems(values, world_size)),
        *combination_problems(recipe, values),
        *saves,
        *lacking,
    ]
    schedule = _schedule(recipe, values, problems)
    if schedule:
        problems += schedule_problems(recipe.tst, values, schedule)
    texts: list[str] = []
    corpora = open_corpora(recipe.data, values.data_cache_path, texts) if has_text else []
    stream = None
    if has_text:
        texts += _vocabulary_problems(recipe, values)
    if schedule and corpora:
        texts += _text_problems(values, schedule, corpora)
        stream = _stream(recipe, values.seed, schedule, corpora, texts)
    if not recipe.data and not has_text:
        problems.append("data: is missing. Name the folders that the text will be in")
    # Only where texts are missing and nothing else is wrong is the rest shown to Megatron.
    is_only_missing = recipe.data and len(texts) <= len(missing_texts(recipe.data))
    if problems or (texts and not is_only_missing):
        raise RecipeError(list(dict.fromkeys([*problems, *texts])))
    assert schedule is not None and rate is not None
    own = {known.destination(key) for key, value in recipe.megatron.items() if value is not None}
    plain = PlainCheck(
        recipe=recipe,
        megatron=megatron,
        flags=(*flags, *save_flags),
        values=values,
        schedule=schedule,
        corpora=tuple(corpora),
        stream=stream,
        world_size=world_size,
        rate=rate,
        known=known,
        warnings=(
            *default_warnings(known, given, values),
            *learning_rate_warnings(rate, schedule),
            *no_effect_warnings(values, own),
            *leak_warnings(corpora),
        ),
        notes=tuple(packages),
    )
    if texts:
        raise NoTextError(texts, plain)
    return plain


def with_profile(recipe: Recipe, known: Flags) -> dict[str, Any]:
    """Megatron's keys and values of a run: the profile's, the recipe's over them, the host's last.

    Args:
        recipe: as ``load_recipe`` read it.
        known: Megatron's parser.
    """
    profile = recipe.profile if recipe.profile in PROFILES else None
    given = given_by(profile, recipe.megatron, known)
    # An empty key is one that the recipe leaves to others.
    own = {k: v for k, v in recipe.megatron.items() if v is not None or k not in given}
    megatron = {**given, **own}
    return known.overlay(megatron, ARGUMENTS) if profile == "cpu" else megatron


def _world_size_of_environment() -> int | None:
    """That of a rank. Not Slurm's number of tasks: a shell in a job has that too."""
    try:
        return ranks.number_of(os.environ, "WORLD_SIZE")
    except ValueError as error:
        raise RecipeError([str(error)]) from None


SIZES = ("size", "num-layers", "num-experts", "num-query-groups", "num-attention-heads", "seq-")


def _names_sizes(problems: Sequence[str]) -> bool:
    """Whether a size is wrong in itself, so that nothing can be said of how it divides."""
    return any(word in problem.partition(":")[0] for problem in problems for word in SIZES)


def _schedule(recipe: Recipe, values: argparse.Namespace, problems: list[str]) -> Schedule | None:
    """The phases; without the steps or sizes of a run, at least what is wrong with the entries."""
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


def _vocabulary_problems(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """Tokenizers, of the texts that can be read, with more pieces than the model has rows."""
    sizes = []
    for folder in recipe.data:
        # What cannot be read is said by ``open_corpora``.
        with contextlib.suppress(ValueError, OSError):
            sizes.append(load_manifest(folder).tokenizer.vocab_size)
    wanted, rows = max(sizes, default=0), values.vocab_size or 0
    if 0 < rows < wanted:
        return [f"vocab-size: {rows} is smaller than the tokenizer's {wanted}"]
    return []


def _text_problems(
    values: argparse.Namespace, schedule: Schedule, corpora: Sequence[Corpus]
) -> list[str]:
    problems = corpora_problems(corpora)
    if values.eval_interval:
        batch = values.eval_global_batch_size or schedule.global_batch_size
        problems += held_out_problems(
            corpora,
            num_samples=batch * values.eval_iters,
            num_latent_positions=schedule.num_latent_positions,
        )
    return problems


def _stream(
    recipe: Recipe,
    seed: int,
    schedule: Schedule,
    corpora: Sequence[Corpus],
    problems: list[str],
) -> StreamPlan | None:
    unit_chunks, max_epochs = recipe.tst.unit_chunks(), recipe.tst.max_epochs
    is_said = tst_problems(recipe.tst)
    if is_said or any(unit_chunks % phase.bag_size for phase in schedule.phases):
        return None  # said of the tst block
    try:
        return StreamPlan(
            [corpus.size() for corpus in corpora],
            schedule,
            unit_chunks=unit_chunks,
            seed=seed,
            max_epochs=max_epochs,
        )
    except ValueError as error:
        problems += [f"data: {line}" for line in str(error).splitlines()]
        return None
