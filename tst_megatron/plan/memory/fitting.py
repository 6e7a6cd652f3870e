"""Search what would make a job fit: one change of the recipe, or two, with the cheapest first.

A change costs time: what is computed again, what waits in the pipeline, and what is sent. Each is a
rule with its source, so the order is an estimate. The memory of each change is told as that of the
recipe itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tst_megatron.plan.memory.job import (
    JobMemory,
    arguments_of_job,
    measured_layers,
    memory_of_job,
)
from tst_megatron.plan.memory.layers import Layer
from tst_megatron.plan.memory.layers_alone import layer_kinds, recomputed_modules
from tst_megatron.recipe.recipe import Recipe, RecipeError
from tst_megatron.recipe.tst_config import TSTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What the cost of a change is estimated by."""

    flops_per_position: float
    """Of the model, forward and backward."""
    flops_per_second: float
    """That a GPU reaches, which is its peak times the MFU."""
    bytes_per_second: float
    """That a GPU sends and receives inside a node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A change of the recipe and what it comes to."""

    changes: Mapping[str, Any]
    """Keys of the recipe; those of its ``tst`` block begin with ``tst.``."""
    memory: JobMemory
    cost: float
    """Estimated share of the step time that it adds; a negative one saves time."""


def ways_to_fit(
    recipe: Recipe, world_size: int, num_bytes: int, machine: Machine
) -> tuple[list[Way], list[str]]:
    """Return changes with which every rank's tensors fit into some bytes, the cheapest first.

    Pairs of changes are tried if no single one is enough.

    Args:
        recipe: without problems, on a process in which the CPU host is installed.
        world_size: ranks of the job.
        num_bytes: for the tensors of a rank: the GPU's memory without a reserve.
        machine: what the costs are estimated by.

    Returns:
        (ways, what was tried and is refused, a sentence each).

    Raises:
        RecipeError: the recipe itself cannot be built.
    """
    job = _Job.of(recipe, world_size)
    singles = list(_changes(job))
    cache: dict[tuple[Any, ...], dict[str, Layer]] = {}
    refused: list[str] = []
    for candidates in (singles, _pairs(singles)):
        ways = []
        for changes in candidates:
            try:
                changed = _Job.of(_changed(recipe, changes), world_size)
                memory = changed.memory(cache)
            except RecipeError as error:
                refused.append(f"{said_of(changes)}: {error.problems[0]}")
                continue
            if memory.fullest.total <= num_bytes:
                cost = _cost(changed, machine) - _cost(job, machine)
                ways.append(Way(changes=changes, memory=memory, cost=cost))
        if ways:
            return sorted(ways, key=lambda way: way.cost), refused
    return [], refused


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    args: argparse.Namespace
    tst: TSTConfig
    bag_sizes: tuple[int, ...]

    @classmethod
    def of(cls, recipe: Recipe, world_size: int) -> _Job:
        args, bag_sizes = arguments_of_job(recipe, world_size)
        return cls(args=args, tst=recipe.tst, bag_sizes=bag_sizes)

    def memory(self, cache: dict[tuple[Any, ...], dict[str, Layer]]) -> JobMemory:
        """Tell the memory; layers that are alike are measured once."""
        args = self.args
        key = (
            args.tensor_model_parallel_size,
            args.sequence_parallel,
            tuple(recomputed_modules(args)),
            self.tst.linear_cross_entropy,
            args.micro_batch_size > 1,
        )
        if key not in cache:
            cache[key] = measured_layers(args, self.tst, self.bag_sizes)
        return memory_of_job(args, self.tst, self.bag_sizes, layers=cache[key])


def _changes(job: _Job) -> Iterator[dict[str, Any]]:
    """Yield single changes of a job. Whether a recipe allows one is found by checking it."""
    args = job.args
    if args.micro_batch_size > 1:
        yield {"micro-batch-size": args.micro_batch_size // 2}
    if max(job.bag_sizes) > 1 and not job.tst.linear_cross_entropy:
        yield {"tst.linear-cross-entropy": True}
    if args.recompute_granularity is None and args.transformer_impl != "local":
        modules = ["layernorm", *(["moe_act"] if args.moe_grouped_gemm else [])]
        yield {"recompute-granularity": "selective", "recompute-modules": modules}
    if args.recompute_granularity != "full":
        yield {
            "recompute-granularity": "full",
            "recompute-method": "uniform",
            "recompute-num-layers": 1,
            "recompute-modules": None,
        }
    tensor = 2 * args.tensor_model_parallel_size
    yield {"tensor-model-parallel-size": tensor, "sequence-parallel": True}
    yield {"pipeline-model-parallel-size": 2 * args.pipeline_model_parallel_size}
    if args.num_experts:
        yield {"expert-model-parallel-size": 2 * args.expert_model_parallel_size}


def _pairs(singles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    pairs = itertools.combinations(singles, 2)
    return [{**one, **other} for one, other in pairs if not one.keys() & other.keys()]


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    own = {key: value for key, value in changes.items() if not key.startswith("tst.")}
    tst = recipe.tst
    if "tst.linear-cross-entropy" in changes:
        tst = dataclasses.replace(tst, linear_cross_entropy=True)
    return dataclasses.replace(recipe, megatron={**recipe.megatron, **own}, tst=tst)


def said_of(changes: Mapping[str, Any]) -> str:
    """Spell changes as overrides of the command line."""
    return " ".join(f"{key}={value}" for key, value in changes.items() if value is not None)


# --- what a job spends beside computing each position once, by the time of that -------------------


def _cost(job: _Job, machine: Machine) -> float:
    """Return the time of what is recomputed, sent and waited for, by that of a position's FLOPs."""
    parts = (_recomputed(job, machine), _sent(job.args, machine), _waited(job.args))
    return sum(parts)


def _recomputed(job: _Job, machine: Machine) -> float:
    """Return the FLOPs that are computed again, by all of a position's."""
    args = job.args
    head = 2.0 * args.hidden_size * args.padded_vocab_size
    again = 0.0
    if args.recompute_granularity == "full":
        # One more forward pass of all layers: a third of forward and backward, which take one and
        # two matrix products for each weight (arXiv 2205.05198, section 5).
        again += (machine.flops_per_position - 3 * head) / 3
    if job.tst.linear_cross_entropy:
        # The logits once more (model/linear_loss.py).
        again += head
    return again / machine.flops_per_position


def _sent(args: argparse.Namespace, machine: Machine) -> float:
    """Return the seconds of collectives that nothing is computed beside, by those of the FLOPs."""
    state = args.hidden_size * args.params_dtype.itemsize
    kinds = layer_kinds(args)
    tensor, experts = args.tensor_model_parallel_size, args.expert_model_parallel_size
    # Two gathers and two scatters in each pass, and two gathers more for the weights' gradients
    # (arXiv 2205.05198, section 4.2.2); ranks share the positions.
    gathered = 10 * state * len(kinds) * (tensor - 1) / tensor
    # There and back in each pass (megatron/core/transformer/moe/token_dispatcher.py).
    topk = args.moe_router_topk if args.num_experts else 0
    exchanged = 4 * state * topk * kinds.count("moe") * (experts - 1) / experts / tensor
    if args.overlap_moe_expert_parallel_comm:
        exchanged = 0.0
    seconds = (gathered + exchanged) / machine.bytes_per_second
    return float(seconds * machine.flops_per_second * tensor / machine.flops_per_position)


def _waited(args: argparse.Namespace) -> float:
    """Return the time that a pipeline stage waits, by that of its work: (p - 1) / (v m).

    Source: arXiv 2104.04473, section 2.2.
    """
    batches = args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)
    chunks = args.virtual_pipeline_model_parallel_size or 1
    return float((args.pipeline_model_parallel_size - 1) / (chunks * batches))
