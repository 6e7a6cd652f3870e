"""Tell the memory of a job's ranks by part: the one function that other rooms of ``plan`` call."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tst_megatron.plan.memory.activations import Activations, activations_of
from tst_megatron.plan.memory.dry_rank import DryRank, dry_rank, rank_of_stage
from tst_megatron.plan.memory.forks import built
from tst_megatron.plan.memory.layers import Layer, layers_of, measure_layers
from tst_megatron.plan.memory.states import States
from tst_megatron.recipe.check.megatron_arguments import ask_megatron, fixed_flags
from tst_megatron.recipe.check.plain import check_plainly
from tst_megatron.recipe.recipe import Recipe
from tst_megatron.recipe.tst_config import TSTConfig

SECONDS = 300.0
IMBALANCE = 1.25
"""Positions of the fullest rank's experts by an even share, unless another value is given. An
assumption: a learned router with the auxiliary loss was not measured here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Bytes of one rank at the fullest moment of a step."""

    rank: int
    stage: int
    """Of the pipeline."""
    states: States
    activations: Activations

    @property
    def total(self) -> int:
        """Return the bytes of all tensors. CUDA, NCCL and gaps of the allocator come on top."""
        return self.states.total + self.activations.total

    def parts(self) -> dict[str, int]:
        """Return the bytes by part, without those that are empty."""
        states = {
            name.replace("_", " "): size for name, size in dataclasses.asdict(self.states).items()
        }
        kept = {f"kept for backward: {k}": size for k, size in self.activations.kept.items()}
        work = {"at work in a layer": self.activations.in_work}
        return {name: size for name, size in {**states, **kept, **work}.items() if size}


@dataclass(frozen=True, kw_only=True, slots=True)
class JobMemory:
    """Memory of a job, of which one rank of each pipeline stage stands for all of the stage."""

    stages: tuple[RankMemory, ...]
    assumptions: tuple[str, ...]
    """What was not built or measured, a sentence each."""

    @property
    def fullest(self) -> RankMemory:
        """Return the rank that needs the most."""
        return max(self.stages, key=lambda each: each.total)


def memory_of_job(
    args: argparse.Namespace,
    tst: TSTConfig,
    bag_sizes: Sequence[int],
    *,
    imbalance: float = IMBALANCE,
    layers: Mapping[str, Layer] | None = None,
) -> JobMemory:
    """Tell the memory of a job, without a GPU. The CPU host must be installed in this process.

    Args:
        args: validated for the job (``recipe/check/megatron_arguments.py``).
        tst: the recipe's block.
        bag_sizes: of all phases; what needs the most counts.
        imbalance: positions that the fullest rank's experts get, by an even share.
        layers: what ``measured_layers`` returned for a job of the same layers, which takes longest.

    Raises:
        RecipeError: the job cannot be built, or not here.
    """
    layers = layers or measured_layers(args, tst, bag_sizes)
    stages = range(args.pipeline_model_parallel_size)
    ranks = [dry_rank(args, tst, rank_of_stage(args, stage)) for stage in stages]
    return JobMemory(
        stages=tuple(
            _memory(args, dry, layers, bag_sizes, stage=stage, imbalance=imbalance)
            for stage, dry in zip(stages, ranks, strict=True)
        ),
        assumptions=tuple(_assumptions(args, imbalance)),
    )


def arguments_of_job(recipe: Recipe, world_size: int) -> tuple[argparse.Namespace, tuple[int, ...]]:
    """Return a job's validated arguments and the bag sizes of its phases; no text is needed.

    Raises:
        RecipeError: the recipe has a problem, or its layout needs another number of ranks.
    """
    plain = check_plainly(recipe, world_size=world_size, has_text=False)
    args = ask_megatron([*plain.flags, *fixed_flags(plain.values, None)], world_size)
    return args, tuple(sorted({phase.bag_size for phase in plain.schedule.phases}))


def memory_of_recipe(recipe: Recipe, world_size: int) -> JobMemory:
    """Tell the memory of a recipe's job; errors as in ``memory_of_job``."""
    args, bag_sizes = arguments_of_job(recipe, world_size)
    return memory_of_job(args, recipe.tst, bag_sizes)


def memory_of_rank(
    args: argparse.Namespace,
    tst: TSTConfig,
    bag_sizes: Sequence[int],
    rank: int,
    *,
    imbalance: float = IMBALANCE,
) -> RankMemory:
    """Tell the memory of any rank of a job; arguments and errors as in ``memory_of_job``."""
    stage = rank // (args.world_size // args.pipeline_model_parallel_size)
    layers = measured_layers(args, tst, bag_sizes)
    dry = dry_rank(args, tst, rank)
    return _memory(args, dry, layers, bag_sizes, stage=stage, imbalance=imbalance)


def measured_layers(
    args: argparse.Namespace, tst: TSTConfig, bag_sizes: Sequence[int]
) -> dict[str, Layer]:
    """Measure one layer of each kind of a job in a forked process.

    Raises:
        RecipeError: they cannot be built here.
    """
    wanted = sorted({1, *bag_sizes})
    said = built(
        functools.partial(measure_layers, args, tst, wanted),
        failed="layers could not be measured",
        doing="running them",
        seconds=SECONDS,
    )
    return layers_of(said)


def _memory(
    args: argparse.Namespace,
    dry: DryRank,
    layers: Mapping[str, Layer],
    bag_sizes: Sequence[int],
    *,
    stage: int,
    imbalance: float,
) -> RankMemory:
    phases = [
        activations_of(
            args, dry.chunks, layers, stage=stage, bag_size=bag_size, imbalance=imbalance
        )
        for bag_size in bag_sizes
    ]
    fullest = max(phases, key=lambda each: each.total)
    return RankMemory(rank=dry.rank, stage=stage, states=dry.states, activations=fullest)


def _assumptions(args: argparse.Namespace, imbalance: float) -> list[str]:
    found = []
    if args.num_experts and args.expert_model_parallel_size > 1:
        found.append(
            f"the experts of the fullest rank get {imbalance:g} times an even share of positions"
        )
    if args.transformer_impl != "local":
        found.append(
            "Transformer Engine's norm and attention keep what their sources say, and no scores; "
            "this was not measured on a GPU"
        )
        found.append("CUDA, NCCL and gaps of the allocator come on top, and were not measured")
    if args.fp8:
        found.append("activations are counted in 16 bits, of which FP8 keeps some in 8")
    if args.cuda_graph_impl != "none":
        found.append("what CUDA graphs hold is not counted")
    if args.num_experts and (args.expert_tensor_parallel_size or 1) > 1:
        found.append("experts that tensor parallelism splits keep as much as whole ones: too much")
    if args.mtp_num_layers:
        found.append("a head for multi-token prediction keeps what a layer and its loss keep")
    return found
