"""Refuse values of single keys that token superposition, the CPU host or this project cannot have.

``REFUSALS`` is the table of them: a row has the keys, the values that are refused, the runs that
the row is for, and the reason. To refuse one more key, add a row. Example: a key that means nothing
for a bag is ``Refusal(keys=("new-key",), only=in_superposition, why="...")``.

Other rules have files of their own: ``numbers.py`` the bounds of each number and how numbers of the
model fit each other, ``parallel_sizes.py`` what the sizes of a job must divide,
``decided_elsewhere.py`` keys that a recipe cannot have with any value. ``_recipe_problems`` in
``check/plain.py`` lists all rules in their order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tst_megatron.recipe.keys.table import destination_of
from tst_megatron.recipe.recipe import Recipe
from tst_megatron.recipe.rules.refusal_conditions import (
    Run,
    differs_from,
    equals,
    every_run,
    has_early_heads,
    in_superposition,
    is_above_zero,
    is_off,
    on_cpu,
    on_cpu_with_heads,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One row: values of some keys that some runs cannot have."""

    keys: tuple[str, ...]
    """A run is refused if any of them has such a value. The message begins with the first one, and
    the reason names the others."""
    values: Callable[[Any], bool] = bool
    """Tells whether a value is refused; without it every value that turns the key on."""
    only: Callable[[Run], bool] = every_run
    """Tells whether the row is for a run."""
    why: str
    """The reason, and what to do about it."""

    def refuses(self, run: Run) -> bool:
        """Tell whether a run has what this row refuses."""
        return self.only(run) and any(
            self.values(getattr(run.values, destination_of(key))) for key in self.keys
        )


REFUSALS = (
    Refusal(
        keys=("mtp-num-layers",),
        only=in_superposition,
        why="multi-token prediction shifts labels by one token, which means nothing for a bag. "
        "Remove it, or train without superposition (tst.bag-size 1)",
    ),
    Refusal(
        keys=("pipeline-model-parallel-layout",),
        only=on_cpu_with_heads,
        values=has_early_heads,
        why="with multi-token prediction on a stage of its own Megatron sends shapes between "
        "stages, on which the CPU host hangs. Put m into the last stage",
    ),
    Refusal(
        keys=(
            "rampup-batch-size",
            "step-batch-size-schedule",
        ),
        why="the position in the token stream is counted in batches of one size. Use a constant "
        "global-batch-size (rampup-batch-size and step-batch-size-schedule unset)",
    ),
    Refusal(
        keys=("cuda-graph-impl",),
        values=equals("full_iteration"),
        why="a full_iteration graph cannot hold the step of both phases. Use local or "
        "transformer_engine",
    ),
    Refusal(
        keys=("hybrid-context-parallel",),
        why="its batches are packed sequences, which a bag has no place in. Remove it",
    ),
    Refusal(
        keys=(
            "iterations-to-skip",
            "result-rejected-tracker-filename",
        ),
        why="skipped steps would break the count of raw tokens read. Remove it, and "
        "result-rejected-tracker-filename",
    ),
    Refusal(
        keys=("fp16",),
        why="Megatron passes over every step whose gradients overflow, so the learning rate and "
        "the checkpoint at the start of its decay lag behind the steps that the recipe "
        "counts, and a save before the first real step fails. Use bf16, as the paper and "
        "every GPU profile do",
    ),
    Refusal(
        keys=("loss-scale",),
        why="steps whose scaled gradients overflow are passed over without a word, and only fp16, "
        "which is refused, needs a scale. Remove it",
    ),
    Refusal(
        keys=("decrease-batch-size-if-needed",),
        why="the position in the token stream is counted in batches of one size. Remove it",
    ),
    Refusal(
        keys=("freeze-all-layers",),
        why="no step would change a weight. Remove it",
    ),
    Refusal(
        keys=("phase-transition-iterations",),
        why="it ends the job at a phase change, and the switch is made inside the run. Remove it",
    ),
    Refusal(
        keys=("train-samples",),
        why="phases are counted in steps. Use train-iters",
    ),
    Refusal(
        keys=("overlap-moe-expert-parallel-comm",),
        only=on_cpu,
        why="it overlaps CUDA streams, and the CPU host has none. Remove it, or use a GPU profile",
    ),
    Refusal(
        keys=(
            "full-validation",
            "multiple-validation-sets",
        ),
        why="evaluation reads the same eval-iters batches every time. Remove it and "
        "multiple-validation-sets",
    ),
    Refusal(
        keys=(
            "reset-position-ids",
            "reset-attention-mask",
            "dataloader-inter-document-masking",
        ),
        why="positions and masks are those of latent positions, which may hold two documents. "
        "Remove it, reset-attention-mask and dataloader-inter-document-masking",
    ),
    Refusal(
        keys=("dataloader-type",),
        values=differs_from(None, "single"),
        why="the token stream is read in order. Remove it",
    ),
    Refusal(
        keys=("hybrid-layer-pattern",),
        why="only GPT models take bags. Remove it",
    ),
    Refusal(
        keys=("ckpt-format",),
        values=differs_from("torch_dist"),
        why="only torch_dist checkpoints can be proven whole and gone on from. Remove it",
    ),
    Refusal(
        keys=("non-persistent-save-interval",),
        why="a run goes on from its checkpoints/ alone. Use save-interval, and "
        "tst.keep-last-checkpoints to keep few",
    ),
    Refusal(
        keys=(
            "no-load-optim",
            "no-load-rng",
            "no-save-optim",
            "no-save-rng",
        ),
        why="a resumed run would not be exact. Remove no-load-optim, no-load-rng, no-save-optim "
        "and no-save-rng",
    ),
    Refusal(
        keys=("use-checkpoint-args",),
        why="the recipe says what a run is. Remove it",
    ),
    Refusal(
        keys=(
            "sft",
            "fim-data",
            "perform-rl-step",
        ),
        why="this is a pre-training tool. Remove sft, fim-data and perform-rl-step",
    ),
    Refusal(
        keys=("rerun-mode",),
        values=equals("report_stats"),
        why="report_stats is refused by the very class it names. Use validate_results or disabled",
    ),
    Refusal(
        keys=("moe-router-force-load-balancing",),
        why="it routes at random, for benchmarks: the experts would learn nothing of their own. "
        "Remove it",
    ),
    Refusal(
        keys=("no-check-for-nan-in-loss-and-grad",),
        values=is_off,
        why="a NaN would go into the weights and into checkpoints unseen. Remove it",
    ),
    Refusal(
        keys=(
            "moe-expert-rank-capacity-factor",
            "moe-paged-stash",
        ),
        why="HybridEP drops the positions beyond it, which changes what is trained. Remove it, "
        "and moe-paged-stash with it",
    ),
    Refusal(
        keys=(
            "hidden-dropout",
            "attention-dropout",
        ),
        only=on_cpu,
        values=is_above_zero,
        why="with dropout a resumed run on the CPU would not be exact. Set hidden-dropout and "
        "attention-dropout to 0",
    ),
    Refusal(
        keys=("fp8-format",),
        only=on_cpu,
        why="the CPU host has no arithmetic in 8 bits. Remove it, or use a GPU profile",
    ),
    Refusal(
        keys=("fp4-format",),
        only=on_cpu,
        why="the CPU host has no arithmetic in 4 bits. Remove it, or use a GPU profile",
    ),
    Refusal(
        keys=("qk-clip",),
        only=on_cpu,
        why="the largest logits come from Transformer Engine's attention, which the CPU host does "
        "not have. Remove it, or use a GPU profile",
    ),
)


def refusals(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """List what a recipe has that is refused, a sentence for each row of the table."""
    run = Run(values=values, is_on_cpu=recipe.profile == "cpu", has_bags=_has_bags(recipe))
    return [f"{row.keys[0]}: {row.why}" for row in REFUSALS if row.refuses(run)]


def _has_bags(recipe: Recipe) -> bool:
    try:
        return any(bag_size > 1 for bag_size, _ in recipe.tst.entries())
    except (TypeError, ValueError):
        # The entries of the schedule are not numbers, which is said elsewhere.
        return False
