"""Run a function in several gloo processes and bring back what each of them returns."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
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
    if preload is not None:
        start_server(preload)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank,
            args=(world_size, folder, function, args),
            nprocs=world_size,
            start_method="spawn" if preload is None else "forkserver",
        )
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False)
            for rank in range(world_size)
        ]


def start_server(preload: str) -> None:
    """Start the server that forks processes with a module imported, if it does not run yet.

    Python before 3.12.8 does not use ``sys.path`` there (CPython issue 117378), and a module that
    it does not find is no error. Remove the variable when that is the oldest in use.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([preload])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _rank(rank: int, world_size: int, folder: str, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    store = torch.distributed.FileStore(f"{folder}/store", world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
