"""Count what a plan needs to know of a recipe: parameters, FLOPs, bytes, and the schedule."""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tst_megatron.data.tokens.format import token_dtype
from tst_megatron.recipe.check.plain import with_profile
from tst_megatron.recipe.keys.flags import Flags, unknown_key
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.padding import padded_vocabulary
from tst_megatron.recipe.parameters import (
    EMBEDDINGS,
    ParameterCount,
    arguments_of,
    count_parameters,
)
from tst_megatron.recipe.recipe import Recipe, RecipeError
from tst_megatron.schedule import Schedule

SIZE_OF: Mapping[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
"""Bytes of a value, as Megatron's keys of the optimizer spell its type."""

RESETS = ("reset-embeddings", "reset-optimizer")

NEEDED = ("train-iters", "global-batch-size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A recipe's model and schedule, in the numbers that a plan is made of."""

    parameters: int
    active: int
    """Parameters that compute one position: the output layer counts, input embeddings do not."""
    size: int
    """The same with both tables, as the paper names its models."""
    is_moe: bool
    flops_per_position: float
    """Megatron's own count, of forward and backward."""
    flops_by_formula: float | None
    """6 N + causal attention, N the active parameters; None for other kinds of attention."""
    checkpoint_bytes: int
    token_bytes: int
    """Bytes of a token on disk."""
    evaluation_share: float
    """FLOPs of all evaluations over those of training."""
    slot_weights: str
    resets: tuple[str, ...]
    """Keys of the tst block that reset something at the switch."""
    schedule: Schedule

    @property
    def positions_per_step(self) -> int:
        """Latent positions of an optimizer step."""
        return self.schedule.latent_positions_before(1)


def without_unknown_keys(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """Take keys out that neither Megatron nor this project knows, and say so, a line each.

    A plan is useful before a recipe is right, and an unknown key changes nothing that it counts.
    """
    known = Flags(argument_parser())
    unknown = [key for key in recipe.megatron if known.destination(key) is None]
    in_block = [
        problem
        for problem in recipe.problems
        if problem.startswith(unknown_key(problem.partition(":")[0], ()))
    ]
    cleaned = dataclasses.replace(
        recipe,
        megatron={key: value for key, value in recipe.megatron.items() if key not in unknown},
        problems=tuple(problem for problem in recipe.problems if problem not in in_block),
    )
    _, of_megatron = known.convert(dict.fromkeys(unknown))
    said = [*of_megatron, *in_block]
    return cleaned, tuple(f"{each} The plan is made without it" for each in map(_stop, said))


def _stop(sentence: str) -> str:
    return sentence if sentence.endswith("?") else f"{sentence}."


def read_model(recipe: Recipe) -> Model:
    """Build a recipe's model on the meta device, and count.

    Raises:
        RecipeError: the recipe says no model or no schedule, with every problem that was found.
    """
    missing = [key for key in NEEDED if recipe.megatron.get(key) is None]
    if missing:
        said = tuple(f"{key}: is missing, and it decides what a run costs" for key in missing)
        raise RecipeError([*recipe.problems, *said])
    count = count_parameters(recipe)
    args = arguments_of(recipe)
    values = Flags(argument_parser()).parse(with_profile(recipe, Flags(argument_parser())))
    args.padded_vocab_size = padded_vocabulary(args.vocab_size, args)
    try:
        schedule = recipe.schedule()
    except ValueError as error:
        raise RecipeError([f"tst: {error}"]) from error
    return Model(
        parameters=count.total,
        active=count.active(EMBEDDINGS),
        size=count.active(),
        is_moe=bool(args.num_experts),
        flops_per_position=_flops_per_position(args),
        flops_by_formula=_flops_by_formula(args, count),
        checkpoint_bytes=checkpoint_bytes(count.total, values),
        token_bytes=token_dtype(args.vocab_size).itemsize,
        evaluation_share=_evaluation_share(values),
        slot_weights=recipe.tst.slot_weights,
        resets=tuple(key for key in RESETS if recipe.tst.as_keys()[key]),
        schedule=schedule,
    )


def _flops_per_position(args: argparse.Namespace) -> float:
    # Importing Megatron takes seconds, and a recipe with a problem is refused before it is needed.
    from tst_megatron.megatron.loop import flops_per_step

    ours = copy.copy(args)  # Megatron's count writes into its arguments.
    ours.global_batch_size = 1
    return float(flops_per_step(ours) / args.seq_length)


def _flops_by_formula(args: argparse.Namespace, count: ParameterCount) -> float | None:
    """Return 6 N + causal attention: half of the 12 L s h d of attention without a mask."""
    if args.multi_latent_attention or args.hybrid_layer_pattern is not None:
        return None
    width = args.num_attention_heads * args.kv_channels
    return float(6 * count.active(EMBEDDINGS) + 6 * args.num_layers * args.seq_length * width)


def checkpoint_bytes(num_parameters: int, values: argparse.Namespace) -> int:
    """Return the size of a checkpoint: weights, and Adam's state where it is saved.

    Mixed precision keeps fp32 weights beside the model's, and saves both.
    """
    is_mixed = values.bf16 or values.fp16
    weights = 2 if is_mixed else 4
    if values.no_save_optim:
        return weights * num_parameters
    types: list[Any] = ["fp32", "fp32", "fp32"]
    if values.use_precision_aware_optimizer:
        types = [values.main_params_dtype, values.exp_avg_dtype, values.exp_avg_sq_dtype]
    main, *moments = [SIZE_OF[kind] for kind in types]
    return (weights + (main if is_mixed else 0) + sum(moments)) * num_parameters


def _evaluation_share(values: argparse.Namespace) -> float:
    """Return the share of FLOPs that evaluations add: a forward pass is a third of a step."""
    if not values.eval_interval or not values.eval_iters:
        return 0.0
    return float(values.eval_iters / values.eval_interval / 3)
