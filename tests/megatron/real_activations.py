"""The most that a step of a real job allocates on one rank, told by the allocator."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from tiny import TINY, VOCABULARY

RECIPE = {
    **TINY,
    "tokenizer-type": "NullTokenizer",
    "vocab-size": VOCABULARY - 1,
    "padded-vocab-size": VOCABULARY,
    "rerun-mode": "disabled",
    "dataloader-type": "single",
    "train-iters": 10**3,
}


def peaks(recipes: list[tuple[dict[str, Any], int]]) -> list[int]:
    """Return the most bytes that a step of each recipe needs, at its bag size."""
    return [_peak(recipe, bag_size) for recipe, bag_size in recipes]


def _peak(recipe: dict[str, Any], bag_size: int) -> int:
    import one_step

    from tst_megatron.schedule import Phase, Schedule

    args = one_step.start(recipe)
    models = one_step.build(args)
    schedule = Schedule(
        phases=(Phase(bag_size=bag_size, first_step=0, num_steps=1),),
        num_latent_positions=args.seq_length,
        global_batch_size=args.global_batch_size,
    )
    shape = (args.micro_batch_size, bag_size * (args.seq_length + 1))
    batches = itertools.repeat({"tokens": torch.randint(3, VOCABULARY - 1, shape)})

    def step() -> None:
        one_step.forward_backward(args, models, schedule, [batches])

    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    memory = [(each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]"]
    sizes = [size for _, size in sorted(memory, key=lambda each: each[0])]
    return max(itertools.accumulate(sizes))
