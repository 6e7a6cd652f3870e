"""Say whether a rank of a job fits its GPU, and if not what would make it fit."""

from __future__ import annotations

from tst_megatron.plan.cost.machine import Machine
from tst_megatron.plan.memory import fitting
from tst_megatron.plan.memory.job import JobMemory, memory_of_recipe
from tst_megatron.plan.published.records import Gpu
from tst_megatron.plan.section import Section
from tst_megatron.recipe.recipe import Recipe

RESERVE = 0.1
"""Share of a GPU's memory that is left to CUDA, NCCL and gaps of the allocator. An assumption."""
MOST_WAYS = 3
GIGA = 1e9


def memory_section(
    recipe: Recipe, machine: Machine, gpu: Gpu, flops_per_position: float
) -> Section:
    """Tell the memory of the fullest rank by part, and what would make it fit.

    Args:
        recipe: without problems, on a process in which the CPU host is installed.
        machine: whose GPUs are the ranks.
        gpu: its kind.
        flops_per_position: of the model, forward and backward.

    Raises:
        RecipeError: the job cannot be built on so many GPUs.
    """
    memory = memory_of_recipe(recipe, machine.num_gpus)
    fullest = memory.fullest
    all_of_it = None if gpu.memory_gigabytes is None else gpu.memory_gigabytes * GIGA
    room = None if all_of_it is None else (1 - RESERVE) * all_of_it
    parts = sorted(fullest.parts().items(), key=lambda part: -part[1])
    rows = [*((name, _size(size)) for name, size in parts), ("all", _size(fullest.total))]
    fits = None if room is None else fullest.total <= room
    lines = [_said(memory, gpu, machine.name, fits), *(f"{each}." for each in memory.assumptions)]
    if fits is False:
        assert room is not None
        lines += _ways(recipe, machine, gpu, int(room), flops_per_position)
    return Section(
        name="memory",
        title=f"Memory of rank {fullest.rank}, the fullest of {machine.num_gpus}",
        columns=("", "GB"),
        rows=tuple(rows),
        lines=tuple(lines),
        values={
            "rank": fullest.rank,
            "bytes by part": fullest.parts(),
            "total bytes": fullest.total,
            "bytes of stages": [stage.total for stage in memory.stages],
            "stages": [
                {"stage": each.stage, "rank": each.rank, "bytes by part": each.parts()}
                for each in memory.stages
            ],
            "gpu bytes": all_of_it,
            "gpu bytes without reserve": room,
            "fits": fits,
        },
        sources=("vendor",),
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIGA:,.2f}"


def _said(memory: JobMemory, gpu: Gpu, name: str, fits: bool | None) -> str:
    total = f"{memory.fullest.total / GIGA:,.1f} GB"
    if fits is None:
        return f"{total}; the memory of {name} is not known here, so whether it fits is not said."
    verb = "fits" if fits else "DOES NOT FIT"
    return (
        f"{total} {verb} into the {gpu.memory_gigabytes:g} GB of {name}, of which {RESERVE:.0%} is "
        "left to CUDA, NCCL and gaps of the allocator (assumed)."
    )


def _ways(
    recipe: Recipe, machine: Machine, gpu: Gpu, room: int, flops_per_position: float
) -> list[str]:
    """Say what would make it fit, the cheapest first."""
    if gpu.link_gigabytes is None:
        return [f"What would make it fit is not ranked: no link of {machine.name} is known here."]
    costs = fitting.Machine(
        flops_per_position=flops_per_position,
        flops_per_second=machine.peak_flops * machine.mfu,
        bytes_per_second=gpu.link_gigabytes * GIGA,
    )
    ways, _ = fitting.ways_to_fit(recipe, machine.num_gpus, room, costs)
    if not ways:
        return ["No change that is known here makes it fit, and no two: take more or larger GPUs."]
    return [
        f"Fits with {fitting.said_of(way.changes)}: {way.memory.fullest.total / GIGA:,.1f} GB, for "
        f"an estimated {way.cost:+.0%} of a step's time."
        for way in ways[:MOST_WAYS]
    ]
