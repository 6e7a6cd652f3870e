"""Every check of a recipe that can be made before a queue wait, all problems at once."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tst_megatron.compatibility import (
    async_save,
    combination_problems,
    parallel_problems,
    smallest_world_size,
)
from tst_megatron.data.corpora import Corpus, corpora_problems, held_out_problems, open_corpora
from tst_megatron.data.manifest import Manifest
from tst_megatron.data.plan import StreamPlan
from tst_megatron.environment import environment_of
from tst_megatron.flags import Flags
from tst_megatron.profiles import PROFILES, given_by
from tst_megatron.recipe import RUN_FOLDER_KEYS, Recipe, RecipeError
from tst_megatron.rules import (
    linear_loss_problems,
    reset_problems,
    schedule_problems,
    tst_problems,
)
from tst_megatron.schedule import Schedule
from tst_megatron.system import padding, ranks
from tst_megatron.training.resharding import padded_vocabulary

DANGEROUS_DEFAULTS = {
    "hidden-dropout": "0.1",
    "attention-dropout": "0.1",
    "norm-epsilon": "1e-5; Qwen3 uses 1e-6",
    "rotary-base": "10000; Qwen3 uses 1000000",
    "adam-beta2": "0.999; the paper uses 0.95",
    "weight-decay": "0.01",
    "lr-warmup-iters": "0: no warm-up",
    "min-lr": "0",
    "lr-decay-style": "linear",
    "lr-wsd-decay-style": "exponential",
    "lr-wsd-decay-iters": "none: WSD never decays",
    "vocab-size": "the tokenizer's own, which pads to another size than the model's card",
}
"""Megatron's defaults that are wrong for pre-training this family, and what they are."""

DANGEROUS_MOE_DEFAULTS = {
    "moe-aux-loss-coeff": "0: experts are not balanced",
    "moe-router-dtype": "none: the router computes in the model's type",
}

NEEDED = (
    "num-layers",
    "hidden-size",
    "num-attention-heads",
    "seq-length",
    "micro-batch-size",
    "global-batch-size",
    "train-iters",
    "lr",
    "save-interval",
    "eval-interval",
)
"""Keys without which there is no model, no step or no checkpoint."""


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
    warnings: tuple[str, ...]

    def arguments_of(self, megatron: Mapping[str, Any]) -> argparse.Namespace | None:
        """The validated arguments of the same run under other keys of Megatron's.

        Args:
            megatron: all keys and values, as ``with_profile`` gives them.

        Returns:
            None where they are refused.
        """
        given = {self.known.destination(key) for key in megatron if megatron[key] is not None}
        values = self.known.parse(megatron)
        flags, problems = self.known.convert(megatron)
        save_flags, save_problems = async_save(self.recipe, values, given)
        flags += [*save_flags, *_fixed_flags(values, self.corpora[0].manifest)]
        if problems or save_problems:
            return None
        try:
            return ask_megatron(flags, self.world_size)
        except RecipeError:
            return None

    def plan(self) -> list[str]:
        """What the run will do, a line each: phases, steps, raw tokens, the switch, epochs."""
        schedule = self.schedule
        lines = []
        for phase in schedule.phases:
            raw_tokens = phase.num_steps * schedule.raw_tokens_per_step(phase)
            steps = f"steps {phase.first_step + 1}-{phase.last_step}"
            lines.append(
                f"{phase.name}: {steps}, bag size {phase.bag_size}, {raw_tokens:,} raw tokens"
                + (self._ablation() if phase.is_superposition else "")
            )
        if schedule.switch_step:
            lines.append(f"the switch comes after step {schedule.switch_step}{self._resets()}")
        total = schedule.raw_tokens_before(schedule.num_steps)
        positions = schedule.latent_positions_before(schedule.num_steps)
        lines.append(f"{total:,} raw tokens in {positions:,} latent positions over the whole run")
        variables = " ".join(f"{name}={value}" for name, value in self.environment.items())
        environment = [f"environment: {variables}"] if variables else []
        return [*lines, *self.stream.corpus_lines(), *environment]

    def _ablation(self) -> str:
        tst = self.recipe.tst
        reads = ", reads tokens" if tst.inputs == "tokens" else ""
        predicts = ", predicts tokens" if tst.targets == "tokens" else ""
        weights = "" if tst.slot_weights == "uniform" else f", slot weights {tst.slot_weights}"
        chunks = ", logits in chunks" if tst.linear_cross_entropy else ""
        return reads + predicts + weights + chunks

    def _resets(self) -> str:
        tst = self.recipe.tst
        embeddings = ["new embeddings and output layer"] if tst.reset_embeddings else []
        optimizer = ["a new optimizer"] if tst.reset_optimizer else []
        resets = " and ".join(embeddings + optimizer)
        return f", with {resets}" if resets else ""


def check_recipe(recipe: Recipe, *, world_size: int | None = None) -> CheckedRecipe:
    """Check a recipe for a job of ``world_size`` ranks.

    Args:
        recipe: as ``load_recipe`` read it.
        world_size: ranks of the job; None takes that of the environment (``WORLD_SIZE``), or the
            smallest that fits the parallel sizes.

    Raises:
        RecipeError: with every problem that was found.
    """
    # Megatron takes seconds to import, and a recipe that cannot be read does not need it.
    from tst_megatron import upstream

    parser = upstream.argument_parser()
    known = Flags(parser)
    megatron = with_profile(recipe, known)
    flags, problems = known.convert(megatron)
    problems = [*recipe.problems, *problems]
    # As parsed: validation, which rewrites them, comes last.
    values = parser.parse_args(flags)
    world_size = world_size or _world_size_of_environment() or smallest_world_size(values)
    given = {known.destination(key) for key, value in megatron.items() if value is not None}
    problems += [f"{key}: is missing" for key in NEEDED if known.destination(key) not in given]
    problems += _size_problems(values)
    problems += _step_problems(values)
    problems += tst_problems(recipe.tst)
    problems += reset_problems(recipe.tst, values)
    problems += linear_loss_problems(recipe.tst, values)
    problems += _key_problems(recipe)
    problems += parallel_problems(values, world_size)
    problems += combination_problems(recipe, values)
    save_flags, save_problems = async_save(recipe, values, given)
    problems += save_problems
    schedule = _attempt(recipe.schedule, "tst", problems) if not _lacks_sizes(values) else None
    corpora = open_corpora(recipe.data, values.data_cache_path, problems)
    if schedule:
        problems += schedule_problems(recipe.tst, values, schedule)
    stream = None
    if schedule and corpora:
        problems += _evaluation_problems(values, schedule, corpora)
        stream = _stream(recipe, values.seed, schedule, corpora, problems)
    if problems:
        raise RecipeError(problems)
    assert schedule is not None and stream is not None
    flags += [*save_flags, *_fixed_flags(values, corpora[0].manifest)]
    arguments = ask_megatron(flags, world_size)
    return CheckedRecipe(
        recipe=recipe,
        flags=tuple(flags),
        schedule=schedule,
        corpora=tuple(corpora),
        stream=stream,
        world_size=world_size,
        arguments=arguments,
        profile_values={k: v for k, v in megatron.items() if recipe.megatron.get(k) != v},
        known=known,
        environment=environment_of(recipe.profile, megatron, known),
        warnings=(*_warnings(known, given, values), *_padding(values, arguments)),
    )


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
    if profile != "cpu":
        return megatron
    from tst_megatron.host import cpu

    return known.overlay(megatron, cpu.ARGUMENTS)


def _world_size_of_environment() -> int | None:
    """That of a rank. Not Slurm's number of tasks: a shell in a job has that too."""
    try:
        return ranks.number_of(os.environ, "WORLD_SIZE")
    except ValueError as error:
        raise RecipeError([str(error)]) from None


def _lacks_sizes(values: argparse.Namespace) -> bool:
    return not all(
        size and size > 0
        for size in (values.train_iters, values.seq_length, values.global_batch_size)
    )


def _size_problems(values: argparse.Namespace) -> list[str]:
    """Sizes that everything else divides by or counts in."""
    sizes = (
        ("num-layers", values.num_layers),
        ("seq-length", values.seq_length),
        ("train-iters", values.train_iters),
        ("global-batch-size", values.global_batch_size),
        ("micro-batch-size", values.micro_batch_size),
        ("save-interval", values.save_interval),
        ("save-retain-interval", values.save_retain_interval),
        ("log-interval", values.log_interval),
        ("eval-interval", values.eval_interval),
        ("hidden-size", values.hidden_size),
        ("num-attention-heads", values.num_attention_heads),
    )
    problems = [f"{key}: {size} is below 1" for key, size in sizes if size is not None and size < 1]
    if values.eval_iters < 0:
        problems.append(f"eval-iters: {values.eval_iters} is below 0")
    return problems


def _step_problems(values: argparse.Namespace) -> list[str]:
    """Lengths in steps that do not fit into the run, on which Megatron ends after its start."""
    steps = values.lr_decay_iters or values.train_iters or 0
    wanted = (("lr-warmup-iters", values.lr_warmup_iters), ("lr-wsd-decay-iters", _wsd(values)))
    return [
        f"{key}: {length} of the schedule's {steps} steps leave none for the rest. Lower it"
        for key, length in wanted
        if steps and (length or 0) >= steps
    ]


def _wsd(values: argparse.Namespace) -> int:
    return (values.lr_wsd_decay_iters or 0) if values.lr_decay_style == "WSD" else 0


def _attempt(make: Callable[[], Any], key: str, problems: list[str]) -> Any:
    try:
        return make()
    except (ValueError, TypeError) as error:
        problems.append(f"{key}: {error}")
        return None


def _key_problems(recipe: Recipe) -> list[str]:
    problems = [
        f"{key}: the run folder decides where a run is kept. Remove the key and use --run-folder"
        for key in RUN_FOLDER_KEYS
        if key in recipe.megatron
    ]
    for key in ("data-path", "train-data-path", "data-args-path", "mock-data", "split"):
        if key in recipe.megatron:
            problems.append(f"{key}: the text of a run is named by `data:`. Remove the key")
    if "tensorboard-log-interval" in recipe.megatron:
        problems.append("tensorboard-log-interval: each step is recorded. Remove the key")
    for key in ("tokenizer-type", "tokenizer-model"):
        if key in recipe.megatron:
            problems.append(f"{key}: the tokenizer comes with the prepared data. Remove the key")
    return problems


def _evaluation_problems(
    values: argparse.Namespace, schedule: Schedule, corpora: Sequence[Corpus]
) -> list[str]:
    problems = corpora_problems(corpora)
    vocab_size = corpora[0].manifest.tokenizer.vocab_size
    if values.vocab_size and values.vocab_size < vocab_size:
        problems.append(
            f"vocab-size: {values.vocab_size} is smaller than the tokenizer's {vocab_size}"
        )
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
    if min(unit_chunks, max_epochs) < 1 or any(unit_chunks % p.bag_size for p in schedule.phases):
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


def _fixed_flags(values: argparse.Namespace, manifest: Manifest) -> list[str]:
    """What the training loop of this project needs of Megatron, whatever the recipe."""
    flags = ["--dataloader-type", "single"]
    flags += ["--tokenizer-type", f"{manifest.tokenizer.kind}Tokenizer"]
    flags += ["--tokenizer-model", str(manifest.tokenizer_path)]
    vocab_size = values.vocab_size or manifest.tokenizer.vocab_size
    if values.vocab_size is None:
        flags += ["--vocab-size", str(vocab_size)]
    if values.padded_vocab_size is None:
        # Megatron would give the model the tokenizer's rows, whatever the vocab-size.
        flags += ["--padded-vocab-size", str(padded_vocabulary(vocab_size, values))]
    if values.max_position_embeddings is None:
        flags += ["--max-position-embeddings", str(values.seq_length)]
    if not values.exit_duration_in_mins:
        # Ten years: the timed exit is how a stop is agreed on, so it must be on
        # (upstream.request_stop).
        flags += ["--exit-duration-in-mins", "5256000"]
    # Each step is recorded from what Megatron writes to TensorBoard.
    flags += ["--tensorboard-log-interval", "1"]
    # Bags have no token-level mask, and causal attention needs none.
    return [*flags, "--no-create-attention-mask-in-dataloader"]


def _warnings(known: Flags, given: set[str | None], values: argparse.Namespace) -> list[str]:
    risks = dict(DANGEROUS_DEFAULTS)
    if values.num_experts:
        risks |= DANGEROUS_MOE_DEFAULTS
    return [
        f"{key}: not set, so Megatron's default holds ({default})"
        for key, default in risks.items()
        if known.destination(key) not in given
    ]


def _padding(values: argparse.Namespace, arguments: argparse.Namespace) -> list[str]:
    """Columns of the softmax that stand for no token."""
    start = values.pretrained_checkpoint
    warning = padding.warning(
        arguments.vocab_size,
        rows=arguments.padded_vocab_size,
        divisor=values.make_vocab_size_divisible_by,
        ranks=values.tensor_model_parallel_size,
        pretrained=Path(start) if start else None,
    )
    return [warning] if warning else []


def ask_megatron(flags: Sequence[str], world_size: int) -> argparse.Namespace:
    """Let Megatron validate what passed our own checks; it stops at its first complaint."""
    from tst_megatron import upstream

    try:
        args = upstream.validate_arguments(flags, world_size=world_size)
        upstream.validate_configurations(args)
    except (AssertionError, ValueError, RuntimeError) as error:
        # Many of Megatron's asserts have no words: their line of source is the best there is.
        reason = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
        raise RecipeError([f"Megatron refuses the recipe: {reason}"]) from error
    return args
