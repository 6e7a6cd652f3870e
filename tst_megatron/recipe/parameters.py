"""Count the parameters of a recipe's model, on the model itself.

Megatron builds the model on torch's meta device, so it takes no memory and no GPU. Parallel sizes
and profiles do not change the number of parameters, so they are left out. One effect is kept: the
rows that tensor parallelism adds to the vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from tst_megatron.megatron.cpu.arguments import ARGUMENTS
from tst_megatron.recipe import padding, profiles
from tst_megatron.recipe.check.megatron_arguments import ask_megatron
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.kinds import LAYOUT_KEYS
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.recipe import Recipe, RecipeError

EMBEDDINGS, OUTPUT_LAYER = "input embeddings", "output layer"
TIED = "input embeddings and output layer, one table"

PARTS = (
    ("embedding.", EMBEDDINGS),
    ("output_layer.", OUTPUT_LAYER),
    ("mtp.", "multi-token prediction"),
    ("decoder.final_layernorm.", "final norm"),
)
"""Beginning of a parameter's name -> the part of the model that it belongs to."""

LAYER_PARTS = (
    ("self_attention.", "attention"),
    ("mlp.router.", "routers"),
    ("mlp.experts.", "experts"),
    ("mlp.shared_experts.", "shared experts"),
    ("mlp.", "feed-forward layers"),
    ("", "norms of layers"),
)
"""The same inside a layer of the decoder; the first that matches counts."""

NEEDED = ("num-layers", "hidden-size", "num-attention-heads", "seq-length", "vocab-size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the model."""

    name: str
    total: int
    active: int
    """Parameters that compute one position. Of the experts, those that it is routed to count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCount:
    """A model's parameters, part by part."""

    parts: tuple[Part, ...]
    padding: str | None
    """A warning about rows of the tables that stand for no token; None if there are none."""

    @property
    def total(self) -> int:
        """Return the number of all parameters."""
        return sum(part.total for part in self.parts)

    def active(self, *without: str) -> int:
        """Count the parameters that compute one position, in all parts except those named."""
        return sum(part.active for part in self.parts if part.name not in without)


def count_parameters(recipe: Recipe) -> ParameterCount:
    """Count the parameters of a recipe's model; this needs no prepared data.

    Raises:
        RecipeError: the recipe says no model, with every problem that was found.
    """
    args = arguments_of(recipe)
    model = build_on_meta(args)
    is_tied = not args.untie_embeddings_and_output_weights
    # A layer's experts are of one size, and a position goes to this share of them.
    share = Fraction(args.moe_router_topk, args.num_experts) if args.num_experts else Fraction(1)
    totals: dict[str, int] = {}
    active: dict[str, Fraction] = {}
    for name, parameter in model.named_parameters():
        part = _part_of(name)
        part = TIED if is_tied and part == EMBEDDINGS else part
        used = parameter.numel() * (share if ".mlp.experts." in name else Fraction(1))
        totals[part] = totals.get(part, 0) + parameter.numel()
        active[part] = active.get(part, Fraction(0)) + used
    return ParameterCount(
        parts=tuple(
            Part(name=name, total=total, active=int(active[name])) for name, total in totals.items()
        ),
        padding=_padding(recipe, args.vocab_size, len(model.embedding.word_embeddings.weight)),
    )


def _padding(recipe: Recipe, vocab_size: int, rows: int) -> str | None:
    known = Flags(argument_parser())
    start = known.value(recipe.megatron, "pretrained-checkpoint")
    return padding.warning(
        vocab_size,
        rows=rows,
        divisor=known.value(recipe.megatron, "make-vocab-size-divisible-by"),
        ranks=known.value(recipe.megatron, "tensor-model-parallel-size"),
        pretrained=Path(start) if start else None,
    )


def build_on_meta(args: argparse.Namespace) -> Any:
    """Build Megatron's ``GPTModel`` without a value in any parameter.

    Args:
        args: of a single CPU process.
    """
    # Importing Megatron takes seconds, and a recipe with a problem is refused before it is needed.
    from tst_megatron.megatron.distributed_checkpoint import model as checkpoint

    checkpoint.start_alone()
    return checkpoint.build_gpt_on_meta(args)


def model_arguments(recipe: Recipe, known: Flags) -> dict[str, Any]:
    """Return the recipe's keys that say what the model is, for a single CPU process."""
    # Fewer keys than the table of kinds has: one that no layout and no profile sets is still given
    # to Megatron, so that its value is checked.
    how_it_runs = {known.destination(key) for key in (*LAYOUT_KEYS, *profiles.keys())}
    values: Mapping[str, Any] = {
        key: value
        for key, value in recipe.megatron.items()
        if known.destination(key) is None or known.destination(key) not in how_it_runs
    }
    # Tensor parallelism pads the vocabulary to a multiple of this many rows on each rank.
    rows = known.value(recipe.megatron, "make-vocab-size-divisible-by")
    ranks = known.value(recipe.megatron, "tensor-model-parallel-size")
    return known.overlay(values, {**ARGUMENTS, "make-vocab-size-divisible-by": rows * ranks})


def arguments_of(recipe: Recipe) -> argparse.Namespace:
    """Return Megatron's arguments of a recipe's model, validated for a single CPU process.

    Raises:
        RecipeError: the recipe says no model, with every problem that was found.
    """
    parser = argument_parser()
    known = Flags(parser)
    flags, problems = known.convert(model_arguments(recipe, known))
    problems = [*recipe.problems, *problems]
    values = parser.parse_args(flags)
    for key in NEEDED:
        if getattr(values, str(known.destination(key))) is None:
            problems.append(f"{key}: is missing, and it decides the number of parameters")
    if problems:
        raise RecipeError(problems)
    if values.max_position_embeddings is None:
        flags += ["--max-position-embeddings", str(values.seq_length)]
    return ask_megatron(flags, 1)


def _part_of(name: str) -> str:
    for beginning, part in PARTS:
        if name.startswith(beginning):
            return part
    # decoder.layers.3.mlp.router.weight
    within = name.split(".", 3)[3]
    return next(part for beginning, part in LAYER_PARTS if within.startswith(beginning))
