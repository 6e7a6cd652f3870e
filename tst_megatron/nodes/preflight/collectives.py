"""Let the ranks of a preflight meet and add up known numbers, within each node and over all."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tst_megatron.megatron.cpu.meter import Meter
from tst_megatron.nodes.preflight.report import numbers

NUM_ROUNDS = 5
"""Measured rounds, after one that is checked alone: it builds the connections."""

PERIOD = 1021
"""After how many elements the numbers repeat: a prime, so that no piece of a ring equals another,
and so small that their sums over thousands of ranks are exact in float32."""


class Absent(Exception):
    """Ranks did not come."""

    def __init__(self, ranks: Sequence[int], seconds: float) -> None:
        """Say which, and how long they were waited for."""
        super().__init__(f"ranks {numbers(ranks)} did not come within {seconds:g} s")
        self.ranks = list(ranks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """Knowledge of every rank about the others, once all have come."""

    store: Any
    hosts: list[str]
    """Host of each rank."""
    unfit: dict[int, str]
    """Ranks that cannot take part in collectives, and why."""
    times: list[float]
    """All clocks at one moment, by rank."""


def meet(
    rank: int, num_ranks: int, *, host: str, unfit: str | None, timeout_seconds: float
) -> Meeting:
    """Wait for all ranks at rank 0's key-value store, which needs neither NCCL nor gloo.

    Raises:
        Absent: some did not come.
        torch.distributed.DistError: rank 0 cannot be reached.
    """
    timeout = timedelta(seconds=timeout_seconds)
    # An agent of torchrun serves the store at this port itself.
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    server = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not is_served,
        timeout=timeout,
        wait_for_workers=False,
    )
    store = dist.PrefixStore("preflight", server)  # type: ignore[attr-defined]
    who = [f"who/{other}" for other in range(num_ranks)]
    store.set(who[rank], json.dumps([host, unfit]))
    try:
        store.wait(who, timeout)
    except dist.DistStoreError as error:
        absent: list[int] = []
        with contextlib.suppress(dist.DistError):
            absent = [other for other, key in enumerate(who) if not store.check([key])]
        if absent:
            raise Absent(absent, timeout_seconds) from error
        raise
    everyone = [json.loads(value) for value in store.multi_get(who)]
    clocks = [f"clock/{other}" for other in range(num_ranks)]
    # All have been woken by the last one to come.
    store.set(clocks[rank], repr(time.time()))
    store.wait(clocks, timeout)
    return Meeting(
        store=store,
        hosts=[host for host, _ in everyone],
        unfit={other: why for other, (_, why) in enumerate(everyone) if why is not None},
        times=[float(value) for value in store.multi_get(clocks)],
    )


def start(
    meeting: Meeting, rank: int, num_ranks: int, *, backend: str, timeout_seconds: float
) -> None:
    """Start the group of all ranks. NCCL connects them only at its first collective."""
    # Or NCCL's watchdog would end the process before it has said what happened.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", meeting.store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=timeout_seconds),
    )


def group_of(ranks: Sequence[int], timeout_seconds: float) -> Any:
    """A group of some ranks, which the others need not know of."""
    return dist.new_group(
        list(ranks),
        timeout=timedelta(seconds=timeout_seconds),
        use_local_synchronization=True,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AllReduce:
    """Result of the all-reduces of a group."""

    num_wrong: int
    """Elements that were not the sum, over all rounds."""
    gb_per_second: float | None
    """Bus bandwidth, the median of the rounds: 2(n-1)/n x bytes / seconds; None for one rank."""


def all_reduce(group: Any, *, num_bytes: int, device: torch.device) -> AllReduce:
    """Add up known numbers over a group, several times; check every sum, and take the time.

    Args:
        group: of this rank; None is all ranks.
        num_bytes: of float32 numbers on each rank.
        device: where they are.
    """
    size, position = dist.get_world_size(group), dist.get_rank(group)
    pattern = torch.arange(num_bytes // 4, device=device).remainder_(PERIOD).float()
    wanted = pattern * size + size * (size - 1) / 2
    buffer = torch.empty_like(pattern)
    meter = Meter(device)
    seconds, num_wrong = [], 0
    for _ in range(1 + NUM_ROUNDS):
        torch.add(pattern, position, out=buffer)
        seconds.append(meter.seconds(lambda: dist.all_reduce(buffer, group=group)))
        num_wrong += int((buffer != wanted).sum())
    if size == 1:
        return AllReduce(num_wrong=num_wrong, gb_per_second=None)
    bus_bytes = 2 * (size - 1) / size * buffer.nbytes
    return AllReduce(
        num_wrong=num_wrong, gb_per_second=bus_bytes / statistics.median(seconds[1:]) / 1e9
    )


def end() -> None:
    """Wait until no rank needs another any more, and take the group down."""
    dist.barrier()
    dist.destroy_process_group()
