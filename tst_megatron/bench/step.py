"""A training step in superposition against one at bag size 1, of the same latent shape.

The step is the product's own: its forward step and model through Megatron's schedule, the reduction
of gradients and the optimizer step, on one rank. One model takes all steps in turns, so that memory
and time differ by the bags alone. Tokens are random: nothing is read from disk.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from tst_megatron.bench.comparing import Notes, Settings, compare_cases
from tst_megatron.bench.profile import differences, kernel_milliseconds
from tst_megatron.bench.results import Result, contender_version
from tst_megatron.bench.timing import Contender, Timing
from tst_megatron.recipe.check.plain import with_profile
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.kinds import LAYOUT_KEYS
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.recipe import Recipe, RecipeError
from tst_megatron.schedule import Phase, Schedule
from tst_megatron.training.run.launch import free_port

BASELINE = "K = 1"
NUM_BATCHES = 4


def compare(
    recipe: Recipe, settings: Settings, *, bag_sizes: Sequence[int], profiles: bool = False
) -> Result:
    """Time steps of a recipe's model in turns, at bag size 1 and others.

    Args:
        recipe: its model, micro-batch, optimizer and profile; parallel sizes are left out, and a
            step has one micro-batch.
        settings: how long, and on what.
        bag_sizes: above 1.
        profiles: also take where the time goes, kernel by kernel.

    Raises:
        RecipeError: what the recipe or Megatron refuses.
    """
    from tst_megatron.megatron import arguments, single_step
    from tst_megatron.megatron.repairs.apply import repair_wheel
    from tst_megatron.megatron.silence import in_silence
    from tst_megatron.model.gpt import TSTGPTModelConfig

    flags = flags_of(recipe, settings.device)
    _be_the_only_rank()
    with in_silence():
        repair_wheel()
        args = arguments.parse_arguments(flags)
        trainer = single_step.Trainer(args, TSTGPTModelConfig.from_arguments(args, recipe.tst))
        contenders = [step_of(trainer, size, seed=settings.seed) for size in (1, *bag_sizes)]
        title = (
            f"{recipe.path.parent.name}/{recipe.path.name}: {args.num_layers} layers of "
            f"{args.hidden_size}, {args.padded_vocab_size} tokens, "
            f"{args.micro_batch_size} x {args.seq_length} latent positions"
        )
        question = "Training step in superposition by that at bag size 1"
        cases = [(title, contenders)]
        found = compare_cases("step", question, BASELINE, cases, settings, notes_on=_notes)
        spent = _profiles(contenders, found, settings.device) if profiles else {}
    kernels = differences(spent, BASELINE) if BASELINE in spent else ()
    return replace(found, kernels=kernels)


def _notes(timings: Sequence[Timing]) -> Notes:
    """Peak memory by that at bag size 1."""
    peaks = {timing.name: timing.peak_bytes for timing in timings if timing.peak_bytes}
    if BASELINE not in peaks:
        return {}
    return {
        f"peak memory, {name}": f"x{peak / peaks[BASELINE]:.4f} of {BASELINE}"
        for name, peak in peaks.items()
    }


def _profiles(
    contenders: Sequence[Contender], found: Result, device: torch.device
) -> dict[str, dict[str, float]]:
    """Time of each kernel, for each contender that could be measured."""
    (case,) = found.cases
    return {
        each.name: kernel_milliseconds(each.run, device)
        for each, timing in zip(contenders, case.timings, strict=True)
        if each.run is not None and timing.failure is None
    }


def flags_of(recipe: Recipe, device: torch.device) -> list[str]:
    """Megatron's flags for single steps of a recipe's model, without data, files or parallelism.

    Raises:
        RecipeError: the recipe's own problems, and keys that Megatron has not.
    """
    from tst_megatron.megatron.cpu import host

    known = Flags(argument_parser())
    layout = {known.destination(key) for key in LAYOUT_KEYS}
    given = with_profile(recipe, known)
    own = {key: value for key, value in given.items() if known.destination(key) not in layout}
    micro_batch = known.value(own, "micro-batch-size")
    fixed: dict[str, Any] = {
        "global-batch-size": micro_batch,
        "train-iters": 10**6,
        # They follow from train-iters, which is not the recipe's.
        "lr-wsd-decay-iters": 1,
        "lr-warmup-iters": 1,
        "tokenizer-type": "NullTokenizer",
        # Its end of document is one more.
        "vocab-size": known.value(own, "vocab-size") - 1,
        "max-position-embeddings": known.value(own, "seq-length"),
        "dataloader-type": "single",
        # It wants Megatron's own data iterator around each step.
        "rerun-mode": "disabled",
        "create-attention-mask-in-dataloader": False,
    }
    if device.type == "cpu":
        fixed |= host.ARGUMENTS
    flags, problems = known.convert(known.overlay(own, fixed))
    if problems := [*recipe.problems, *problems]:
        raise RecipeError(problems)
    return flags


def step_of(trainer: Any, bag_size: int, *, seed: int) -> Contender:
    """The step at one bag size, on a few batches of random tokens over and over."""
    from tst_megatron.training.step import make_forward_step

    args = trainer.args
    phase = Phase(bag_size=bag_size, first_step=0, num_steps=10**6)
    schedule = Schedule(
        phases=(phase,),
        num_latent_positions=args.seq_length,
        global_batch_size=args.global_batch_size,
    )
    data = random_batches(
        (args.micro_batch_size, schedule.raw_tokens_per_sample(phase)),
        vocabulary=args.padded_vocab_size - 1,
        seed=seed,
    )
    return Contender(
        name=f"K = {bag_size}",
        version=contender_version("tst-megatron"),
        run=functools.partial(trainer.step, make_forward_step(schedule), data),
    )


def random_batches(
    shape: tuple[int, int], *, vocabulary: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches of raw tokens in memory, whose frequencies fall as those of text do."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(NUM_BATCHES):
        uniform = torch.rand(shape, generator=generator, device="cpu")
        batches.append({"tokens": (uniform**4 * vocabulary).long()})
    return itertools.cycle(batches)


def _be_the_only_rank() -> None:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
