"""End the processes that Megatron starts for saves together with the rank that started them.

A save has two helpers: a worker that writes asynchronous saves, and a server of the queue for its
results. Upstream's outlive a killed rank. The worker would wait for ever, deaf to SIGTERM, or write
into a folder that a restarted run saves to.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from multiprocessing.managers import SyncManager
from typing import Any

from tst_megatron.megatron import names
from tst_megatron.system.processes.lock import join_with_parent
from tst_megatron.system.processes.signals import die_with_parent

_loop_of_worker = names.async_utils.PersistentAsyncCaller.async_loop


def end_worker_with_its_rank() -> None:
    """Let ``checkpoint_worker`` write asynchronous saves from now on."""
    caller = names.async_utils.PersistentAsyncCaller
    if caller.async_loop is _loop_of_worker:
        # Not where the CPU host has put its own, which calls this one.
        caller.async_loop = staticmethod(checkpoint_worker)


def checkpoint_worker(*args: Any) -> None:
    """Run Megatron's own loop of the worker for as long as its rank lives.

    Remove when upstream's worker ends with its rank.
    """
    die_with_parent()
    # It writes until the kernel has ended it, which may be later than its rank's end.
    join_with_parent()
    _loop_of_worker(*args)


def with_a_server_that_ends(get_write_results_queue: Callable[..., Any]) -> Callable[..., Any]:
    """Start the server of the results queue as a process that ends with its rank.

    Every save has one, a synchronous save too. Remove when upstream's ends with its rank.
    """

    @functools.wraps(get_write_results_queue)
    def wrapper(mp_mode: str = "spawn") -> Any:
        if names.filesystem_async._results_queue is None:
            manager = SyncManager(ctx=multiprocessing.get_context(mp_mode))
            manager.start(initializer=die_with_parent)
            # The queue keeps its manager.
            names.filesystem_async._results_queue = manager.Queue()
        return names.filesystem_async._results_queue

    return wrapper


def end_checkpoint_worker() -> None:
    """End the worker of asynchronous saves, with no wait, if the run left one behind."""
    caller = names.async_utils.PersistentAsyncCaller
    for tasks in (caller._persistent_queue, caller._persistent_preload_q):
        if tasks is not None:
            # Nobody reads them any more.
            tasks.cancel_join_thread()
    owner = names.async_utils.AsyncCallsQueue._persistent_caller
    if owner is not None:
        owner.close(abort=True)
