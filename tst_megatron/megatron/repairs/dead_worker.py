"""Notice that the worker of asynchronous saves has died, where Megatron would wait or not look.

A worker may be killed, for example for want of memory. What it was writing is then no checkpoint,
and the run ends with a message that names the worker.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from typing import Any

from tst_megatron.megatron import names


def with_joins_that_end(get_process: Callable[..., Any]) -> Callable[..., Any]:
    """Let joins of the worker's queues end when it is dead.

    Upstream joins them without a limit. Remove when it looks at the process while it waits.
    """

    @functools.wraps(get_process)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        process = get_process(*args, **kwargs)
        caller = names.async_utils.PersistentAsyncCaller
        for tasks in (caller._persistent_queue, caller._persistent_preload_q):
            tasks.join = functools.partial(_join, tasks, process)
        return process

    return wrapper


def _join(tasks: Any, process: Any) -> None:
    # In a thread, since a worker that is killed may take the queue's lock with it.
    waiter = threading.Thread(target=type(tasks).join, args=(tasks,), daemon=True)
    waiter.start()
    while waiter.is_alive():
        was_alive = process.is_alive()
        waiter.join(1.0)
        if waiter.is_alive() and not was_alive:
            _require(process)


def unless_the_worker_died(is_done: Callable[..., Any]) -> Callable[..., Any]:
    """Let a wait for the result of a save end when the worker is dead.

    Upstream waits without a limit. Remove when it looks at the process while it waits.
    """

    @functools.wraps(is_done)
    def wrapper(self: Any, blocking: bool = False, no_dist: bool = False) -> Any:
        while blocking and self.process and self.cur_item is None:
            # Asked first, so that a last word of the worker still counts.
            was_alive = self.process.is_alive()
            try:
                self.cur_item = self._persistent_comp_q.get(timeout=1.0)
            except queue.Empty:
                if not was_alive:
                    _require(self.process)
        return is_done(self, blocking, no_dist)

    return wrapper


def with_a_worker(maybe_finalize: Callable[..., Any]) -> Callable[..., Any]:
    """Look after each step whether the worker still lives.

    Else its death shows at the next save, which would be lost too. Remove when upstream looks at
    the process after each step.
    """

    @functools.wraps(maybe_finalize)
    def wrapper(self: Any, blocking: bool = False, no_dist: bool = False) -> Any:
        process = names.async_utils.PersistentAsyncCaller._persistent_process
        if process is not None:
            _require(process)
        return maybe_finalize(self, blocking, no_dist)

    return wrapper


def _require(process: Any) -> None:
    if not process.is_alive():
        raise RuntimeError(
            f"the checkpoint worker (process {process.pid}) ended with status {process.exitcode}: "
            "what it was writing is no checkpoint. Continue from the newest one"
        )
