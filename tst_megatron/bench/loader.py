"""Time the training loader, against the text that a node of eight B200 reads at K = 16.

The loader is the one that training uses: the token stream behind torch's DataLoader and Megatron's
sampler, one rank. By the paper's step times a node of eight B200 reads 3.0M raw tokens per second
at K = 16; twice that over 8 GPUs of 4 workers each is 188 thousand per worker.

Numbers of workers are measured one after the other and not in turns: workers read ahead, and would
do so while another number is timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tst_megatron.bench.results import Case, Result, contender_version
from tst_megatron.bench.timing import Spread, Timing
from tst_megatron.data.stream.corpora import Corpus, open_corpora
from tst_megatron.data.stream.plan import StreamPlan
from tst_megatron.data.stream.stream import TokenStream
from tst_megatron.megatron import single_step
from tst_megatron.megatron.cpu.meter import Meter
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.schedule import Schedule, resolve_phases
from tst_megatron.training.dataset import TrainingSamples
from tst_megatron.training.run.indexes import make_ready

NEEDED_PER_NODE = 2 * 3.0e6
GPUS_PER_NODE = 8
WORKERS_PER_GPU = 4
NEEDED_PER_WORKER = NEEDED_PER_NODE / GPUS_PER_NODE / WORKERS_PER_GPU
MICRO_BATCH = 4
BATCHES_PER_ROUND = 64
READ_AHEAD = 2
"""Batches that each worker prepares beforehand: torch's default."""


def compare(
    prepared: Path,
    *,
    workers: Sequence[int],
    bag_size: int,
    num_latent_positions: int,
    rounds: int,
    seed: int,
) -> Result:
    """Read a prepared folder with each number of workers.

    Args:
        prepared: made by ``tst-megatron data prepare``.
        workers: numbers of workers; the first is the baseline.
        bag_size: K, raw tokens of a latent position.
        num_latent_positions: L, of a sample.
        rounds: of 64 batches each.
        seed: of the stream.

    Raises:
        RecipeError: the folder cannot be read.
    """
    problems: list[str] = []
    corpora = open_corpora({prepared: 1.0}, None, problems)
    if problems:
        raise RecipeError(problems)
    per_step = bag_size * num_latent_positions * MICRO_BATCH * 8
    # Ten epochs, and at least a step of each phase; what is read beyond them starts again.
    num_steps = max(2, 10 * corpora[0].manifest.train.tokens // per_step)
    plan = _plan(corpora, bag_size, num_latent_positions, num_steps, seed)
    make_ready(plan, corpora, Console(stderr=True))
    dataset = TrainingSamples(TokenStream(plan, corpora))
    timings: list[Timing] = []
    notes: dict[str, float | str] = {}
    num_tokens = BATCHES_PER_ROUND * MICRO_BATCH * (bag_size * num_latent_positions + bag_size)
    for number in workers:
        timing = _time(dataset, number, rounds)
        assert timing.spread is not None
        base = timings[0].seconds if timings else timing.seconds
        pairs = zip(timing.seconds, base, strict=True)
        timing.ratio = Spread.of([own / theirs for own, theirs in pairs])
        timings.append(timing)
        speed = num_tokens / timing.spread.median
        needed = speed / max(1, number) / NEEDED_PER_WORKER
        notes[timing.name] = (
            f"{speed / 1e6:.1f}M raw tokens/s, {needed:.0f} times what a worker must give"
        )
    title = f"K = {bag_size}, L = {num_latent_positions}, {BATCHES_PER_ROUND} micro-batches of 4"
    return Result(
        which="loader",
        question="Training loader, by number of workers",
        baseline=timings[0].name,
        device=Meter(torch.device("cpu")).facts(),
        rounds=rounds,
        seed=seed,
        cases=[Case(title=title, timings=timings, notes=notes)],
        are_in_turns=False,
    )


def _time(dataset: TrainingSamples, workers: int, rounds: int) -> Timing:
    """Time rounds of batches, after the workers have started and what they read ahead is gone."""
    batches = _batches(dataset, workers)
    for _ in range(READ_AHEAD * max(1, workers)):
        next(batches)
    timing = Timing(name=f"{workers} workers", version=contender_version("tst-megatron"))
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(BATCHES_PER_ROUND):
            next(batches)
        timing.seconds.append(time.perf_counter() - start)
    timing.spread = Spread.of(timing.seconds)
    return timing


def _plan(
    corpora: list[Corpus], bag_size: int, length: int, num_steps: int, seed: int
) -> StreamPlan:
    """A long run over the corpora, superposed almost to its end."""
    schedule = Schedule(
        phases=resolve_phases([(bag_size, num_steps - 1), (1, 1)], num_steps=num_steps),
        num_latent_positions=length,
        global_batch_size=MICRO_BATCH * 8,
    )
    return StreamPlan(
        [corpus.size() for corpus in corpora],
        schedule,
        unit_chunks=bag_size,
        seed=seed,
        max_epochs=10_000,
    )


def _batches(dataset: TrainingSamples, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """The micro-batches of one rank, as Megatron's loader gives them, over and over."""
    sampler = single_step.pretraining_sampler(len(dataset), micro_batch_size=MICRO_BATCH)
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, **options)
    while True:
        yield from loader
