"""Run a function in several gloo processes and bring back what each of them returns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, preload: str | None = None
) -> list[Any]:
    """Call ``function(*args)`` on every rank of a new gloo group; results by rank.

    Args:
        function: importable by name.
        world_size: number of ranks.
        args: of the function.
        preload: a module that the ranks are forked with, already imported; else each starts anew.
    """
    method = "spawn" if preload is None else "forkserver"
    if preload is not None:
        torch.multiprocessing.get_context("forkserver").set_forkserver_preload([preload])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank,
            args=(world_size, folder, function, args),
            nprocs=world_size,
            start_method=method,
        )
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False)
            for rank in range(world_size)
        ]


def _rank(rank: int, world_size: int, folder: str, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    store = torch.distributed.FileStore(f"{folder}/store", world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
