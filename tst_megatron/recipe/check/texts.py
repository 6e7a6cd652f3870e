"""Look at the texts of a recipe: open its prepared folders and plan what the run reads of them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.stream.corpora import (
    Corpus,
    corpora_problems,
    held_out_problems,
    open_corpora,
)
from tst_megatron.data.stream.plan import StreamPlan
from tst_megatron.data.stream.sample_order import unit_problem
from tst_megatron.recipe.recipe import Recipe
from tst_megatron.recipe.rules.tst import tst_problems
from tst_megatron.schedule import Schedule


def look_at_texts(
    recipe: Recipe,
    values: argparse.Namespace,
    schedule: Schedule | None,
    problems: list[str],
) -> tuple[list[Corpus], StreamPlan | None]:
    """Open the prepared folders of a recipe and plan what the run reads of them.

    Args:
        recipe: for its ``data:`` and ``tst:`` blocks.
        values: what its keys came to.
        schedule: of its phases; without one only the folders are opened.
        problems: what is wrong with the texts is added here.
    """
    corpora = open_corpora(recipe.data, values.data_cache_path, problems)
    problems += _vocabulary_problems(recipe, values)
    if not schedule or not corpora:
        return corpora, None
    problems += _text_problems(values, schedule, corpora)
    return corpora, _stream(recipe, values.seed, schedule, corpora, problems)


def _vocabulary_problems(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """Find tokenizers, of the texts that can be read, with more pieces than the model has rows."""
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
    if is_said or any(unit_problem(phase.bag_size, unit_chunks) for phase in schedule.phases):
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
