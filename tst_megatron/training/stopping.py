"""Stop signals, from the first moment of a rank on: none is lost, and no child dies of one.

Both signals stay blocked in every thread, and one thread of ours waits for them. Whatever is
started later, by fork or by exec, inherits the mask: a scheduler signals the whole process group,
and loader and checkpoint workers must live on until the rank has saved.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What Slurm and people send: SIGTERM before the end of an allocation, SIGUSR2 on request."""

_THREAD = "stop signals"
_requested = threading.Event()
_receivers: list[Callable[[], None]] = []


def listen() -> None:
    """Take stop signals in this process from now on; called first, before anything slow."""
    if any(thread.name == _THREAD for thread in threading.enumerate()):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    # Python unblocks SIGTERM when it first starts this helper, so that is done here and now, and
    # with a handler for one that has been waiting.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: _stop())
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    atexit.register(end_children)
    threading.Thread(target=_wait, name=_THREAD, daemon=True).start()


def _wait() -> None:
    while True:
        signal.sigwait(STOP_SIGNALS)
        _stop()


def _stop() -> None:
    _requested.set()
    for stop in _receivers:
        stop()


def pass_on_to(stop: Callable[[], None]) -> None:
    """Call ``stop`` at each stop signal from now on, and at once if there was one before."""
    _receivers.append(stop)
    if _requested.is_set():
        stop()


@contextmanager
def blocked() -> Iterator[None]:
    """Start processes that are to get no stop signal before they ``listen``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent() -> None:
    """End this worker, at once and whatever it is doing, when the process it works for has ended.

    Called in a child that multiprocessing started, of whatever method: a forkserver stands between
    the two and lives on, so the kernel's own signal at a parent's death would not come.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a child of multiprocessing works for another process"

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent's end", daemon=True).start()


def end_children() -> None:
    """End what multiprocessing left running, which no ``terminate`` does while SIGTERM is blocked.

    Python terminates its daemons at exit and then waits for them without a limit.
    """
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
