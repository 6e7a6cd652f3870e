"""Tell which micro-batches are in flight on a pipeline stage, by Megatron's schedules.

A micro-batch is in flight on a stage from its forward pass to its backward pass, and all that its
layers keep is in memory meanwhile. Source: megatron/core/pipeline_parallel/schedules.py,
``get_pp_rank_microbatches`` and ``get_schedule_table``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator


def in_flight(args: argparse.Namespace, stage: int) -> Iterator[tuple[int, Counter[int]]]:
    """Yield, before each backward pass of a step, its chunk and all that are in flight.

    Example: the first of 4 stages without virtual ones has 4 micro-batches in flight, and the last
    has one.

    Args:
        args: validated for the job.
        stage: of the pipeline, from 0.

    Yields:
        (chunk whose backward pass comes next, number of micro-batches in flight by chunk). Equal
        situations are told once.
    """
    chunks = args.virtual_pipeline_model_parallel_size or 1
    order = _order(_num_micro_batches(args), chunks, args)
    warm_up = min(_warm_up(args, stage, chunks), len(order))
    backward = [chunks - 1 - chunk for chunk in order]
    flying: Counter[int] = Counter(order[:warm_up])
    seen: set[tuple[int, tuple[tuple[int, int], ...]]] = set()
    for number, chunk in enumerate(backward):
        if warm_up + number < len(order):
            flying[order[warm_up + number]] += 1
        situation = (chunk, tuple(sorted(flying.items())))
        if situation not in seen:
            seen.add(situation)
            yield chunk, Counter(flying)
        flying[chunk] -= 1


def _num_micro_batches(args: argparse.Namespace) -> int:
    return int(args.global_batch_size // (args.micro_batch_size * args.data_parallel_size))


def _warm_up(args: argparse.Namespace, stage: int, chunks: int) -> int:
    """Return the number of forward passes before the first pair of forward and backward."""
    size = args.pipeline_model_parallel_size
    # One micro-batch's exchange between experts runs beside the next one's computation, so that
    # there is one more, also without a pipeline.
    extra = int(bool(args.overlap_moe_expert_parallel_comm))
    if chunks == 1:
        return int(size - stage - 1) + extra
    return int((size - stage - 1) * 2 + (chunks - 1) * _group(args)) + extra


def _group(args: argparse.Namespace) -> int:
    return int(args.microbatch_group_size_per_vp_stage or args.pipeline_model_parallel_size)


def _order(micro_batches: int, chunks: int, args: argparse.Namespace) -> list[int]:
    """Return the chunk of each forward pass of a step; backward passes count chunks from the end.

    A group of micro-batches goes through one chunk after the other. Three groups show every
    situation that later ones repeat.
    """
    if chunks == 1:
        return [0] * min(micro_batches, 2 * args.pipeline_model_parallel_size + 2)
    group = _group(args)
    order = []
    for first in range(0, min(micro_batches, 4 * group), group):
        width = min(group, micro_batches - first)
        order += [chunk for chunk in range(chunks) for _ in range(width)]
    return order
