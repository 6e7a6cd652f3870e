"""Raw tokens per second of the training loader, against what a node of eight B200 reads at K = 16.

    python benchmarks/loader_throughput.py PREPARED_FOLDER --workers 0 1 2 4

The loader is the one that training uses: the token stream behind torch's DataLoader and Megatron's
sampler, one rank. By the paper's step times a node of eight B200 reads 3.0M raw tokens per second
at K = 16; twice that over 8 GPUs of 4 workers each is 188 thousand per worker.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tst_megatron.host import cpu

cpu.install(even_with_gpu=True)

import torch
from megatron.training.datasets.data_samplers import MegatronPretrainingSampler
from rich.console import Console

from tst_megatron.data.corpora import Corpus, open_corpora
from tst_megatron.data.dataset import TrainingSamples
from tst_megatron.data.plan import StreamPlan
from tst_megatron.data.ready import make_ready
from tst_megatron.data.stream import TokenStream
from tst_megatron.schedule import Schedule, resolve_phases

NEEDED_PER_NODE = 2 * 3.0e6
GPUS_PER_NODE = 8
WORKERS_PER_GPU = 4
MICRO_BATCH = 4


def make_plan(corpora: list[Corpus], bag_size: int, length: int, num_steps: int) -> StreamPlan:
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
        seed=1234,
        max_epochs=10_000,
    )


def batches(dataset: TrainingSamples, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of one rank, as Megatron's loader gives them, over and over."""
    sampler = MegatronPretrainingSampler(
        total_samples=len(dataset),
        consumed_samples=0,
        micro_batch_size=MICRO_BATCH,
        data_parallel_rank=0,
        data_parallel_size=1,
    )
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, **options)
    while True:
        yield from loader


def tokens_per_second(dataset: TrainingSamples, workers: int, seconds: float) -> float:
    """Raw input tokens per second after the workers have started."""
    loader = batches(dataset, workers)
    for _ in range(2 * max(1, workers)):
        next(loader)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += next(loader)["tokens"].numel()
    return count / (time.perf_counter() - start)


def main() -> None:
    """Measure the loader for each number of workers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made by `tst-megatron data prepare`")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--bag-size", type=int, default=16)
    parser.add_argument("--seq-length", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    problems: list[str] = []
    corpora = open_corpora({options.folder: 1.0}, None, problems)
    if problems:
        raise SystemExit("\n".join(problems))
    per_sample = options.bag_size * options.seq_length
    # Ten epochs are more than is read in the time.
    steps = max(2, 10 * corpora[0].manifest.train.tokens // (per_sample * MICRO_BATCH * 8))
    plan = make_plan(corpora, options.bag_size, options.seq_length, steps)
    make_ready(plan, corpora, Console())
    dataset = TrainingSamples(TokenStream(plan, corpora))
    per_worker = NEEDED_PER_NODE / GPUS_PER_NODE / WORKERS_PER_GPU
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {corpora[0].manifest.dtype} tokens")
    print("| workers | raw tokens/s | per worker | times what a worker must give |")
    print("|---|---|---|---|")
    for workers in options.workers:
        measured = tokens_per_second(dataset, workers, options.seconds)
        each = measured / max(1, workers)
        print(
            f"| {workers} | {measured / 1e6:.1f}M | {each / 1e6:.1f}M | {each / per_worker:.0f} |"
        )


if __name__ == "__main__":
    main()
