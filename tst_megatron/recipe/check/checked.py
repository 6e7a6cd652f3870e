"""Hold a recipe that passed its checks, with everything that a run needs of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tst_megatron.data.stream.corpora import Corpus
from tst_megatron.data.stream.plan import StreamPlan
from tst_megatron.recipe.check.megatron_arguments import ask_megatron, fixed_flags
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.learning_rate import LearningRate
from tst_megatron.recipe.recipe import Recipe, RecipeError
from tst_megatron.recipe.rules.async_saves import async_save
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.schedule import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedRecipe:
    """A recipe that passed: all that a run needs, and what its owner should know."""

    recipe: Recipe
    flags: tuple[str, ...]
    """Megatron's command line."""
    schedule: Schedule
    corpora: tuple[Corpus, ...]
    stream: StreamPlan
    """What every sample of the run reads."""
    world_size: int
    arguments: argparse.Namespace
    """Megatron's arguments, validated for a job of that size."""
    profile_values: dict[str, Any]
    """What the profile gave, beside the recipe's own keys."""
    known: Flags
    """Megatron's parser."""
    environment: dict[str, str]
    """Variables that the ranks are to be started with (``environment.py``)."""
    rate: LearningRate
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """Of this environment, which may not be the job's."""

    def arguments_of(self, megatron: Mapping[str, Any]) -> argparse.Namespace | None:
        """Return the validated arguments of the same run under other keys of Megatron's.

        Args:
            megatron: all keys and values, as ``with_profile`` gives them.

        Returns:
            None if they are refused.
        """
        given = {self.known.destination(key) for key in megatron if megatron[key] is not None}
        values = self.known.parse(megatron)
        flags, problems = self.known.convert(megatron)
        save_flags, save_problems = async_save(self.recipe, values, given)
        flags += [*save_flags, *fixed_flags(values, self.corpora[0].manifest)]
        if problems or save_problems:
            return None
        try:
            return ask_megatron(flags, self.world_size)
        except RecipeError:
            return None

    def plan(self) -> list[str]:
        """Describe the run, a line each: phases, steps, raw tokens, the switch, epochs."""
        lines = plan_lines(self.recipe.tst, self.schedule, self.stream.corpus_lines(), self.rate)
        variables = " ".join(f"{name}={value}" for name, value in self.environment.items())
        return [*lines, *([f"environment: {variables}"] if variables else []), *self.notes]


def plan_lines(
    tst: TSTConfig, schedule: Schedule, corpora: Sequence[str], rate: LearningRate
) -> list[str]:
    """Describe what a run will do, a line each.

    Args:
        tst: the recipe's block.
        schedule: of its phases.
        corpora: lines on what it reads of each text.
        rate: of its learning rate.
    """
    lines = []
    for phase in schedule.phases:
        raw_tokens = phase.num_steps * schedule.raw_tokens_per_step(phase)
        steps = f"steps {phase.first_step + 1}-{phase.last_step}"
        name = schedule.said_of(phase)
        lines.append(
            f"{name}: {steps}, bag size {phase.bag_size}, {raw_tokens:,} raw tokens"
            + (_ablation(tst) if phase.is_superposition else "")
        )
    if schedule.switch_step:
        lines.append(f"the switch comes after step {schedule.switch_step}{_resets(tst)}")
    total = schedule.raw_tokens_before(schedule.num_steps)
    positions = schedule.latent_positions_before(schedule.num_steps)
    lines.append(f"{total:,} raw tokens in {positions:,} latent positions over the whole run")
    return [*lines, *corpora, rate.line(schedule)]


def _ablation(tst: TSTConfig) -> str:
    reads = ", reads tokens" if tst.inputs == "tokens" else ""
    predicts = ", predicts tokens" if tst.targets == "tokens" else ""
    weights = "" if tst.slot_weights == "uniform" else f", slot weights {tst.slot_weights}"
    chunks = ", logits in chunks" if tst.linear_cross_entropy else ""
    return reads + predicts + weights + chunks


def _resets(tst: TSTConfig) -> str:
    embeddings = ["new embeddings and output layer"] if tst.reset_embeddings else []
    optimizer = ["a new optimizer"] if tst.reset_optimizer else []
    resets = " and ".join(embeddings + optimizer)
    return f", with {resets}" if resets else ""
