"""Stop signals, from the first moment of a rank on: none is lost, and no child dies of one.

The signals stay blocked in every thread, and one thread of ours waits for them. Whatever is
started later, by fork or by exec, inherits the mask: a scheduler and a terminal signal the whole
process group, and loader and checkpoint workers must live on until the rank has saved.

Children end with the process that they work for, whatever ends it.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from tst_megatron.system.exit_status import INTERRUPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""What Slurm and people send: SIGTERM before the end of an allocation, SIGUSR2 on request, SIGINT
from a terminal (Ctrl-C)."""

SECONDS_OF_ONE_STOP = 1.0
"""One Ctrl-C may come twice, from the terminal and through whatever started the ranks. One that
comes later than this after the first signal is a second one."""

_THREAD = "stop signals"
_requested = threading.Event()
_requested_at = 0.0
_receivers: list[Callable[[], None]] = []


def listen() -> None:
    """Take stop signals in this process from now on; called first, before anything slow."""
    if any(thread.name == _THREAD for thread in threading.enumerate()):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    # Python unblocks SIGTERM when it first starts this helper, so that is done here and now, and
    # with a handler for one that has been waiting.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: _stop(number))
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    atexit.register(end_children)
    end_forks_with_this()
    threading.Thread(target=_wait, name=_THREAD, daemon=True).start()


def _wait() -> None:
    while True:
        _stop(signal.sigwait(STOP_SIGNALS))


def _stop(number: int) -> None:
    global _requested_at
    now = time.monotonic()
    if not _requested.is_set():
        _requested_at = now
        _requested.set()
    elif number == signal.SIGINT and now - _requested_at > SECONDS_OF_ONE_STOP:
        # A second Ctrl-C: whoever waits at a terminal does not want to wait any more.
        os._exit(INTERRUPTED)
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
    end_forks_with_this()

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent's end", daemon=True).start()


_SET_PARENT_DEATH_SIGNAL = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the one that started it has ended.

    Called in the child, before it executes anything: the kernel keeps it over an exec. It counts
    from the end of the *thread* that started the child, so the main thread has to.
    """
    if _libc is not None:
        _libc.prctl(_SET_PARENT_DEATH_SIGNAL, int(number), 0, 0, 0)
        if os.getppid() != parent:
            # It ended before the kernel was told.
            os._exit(128 + number)


_forks_end = False


def end_forks_with_this() -> None:
    """Every process that this one's main thread forks from now on ends with it: loader workers.

    torch's own look at their parent comes every 5 s, and not while they have work.
    """
    global _forks_end
    if not _forks_end:
        _forks_end = True
        os.register_at_fork(before=_note_parent, after_in_child=_end_with_parent)


_forking = threading.local()


def _note_parent() -> None:
    is_main = threading.current_thread() is threading.main_thread()
    _forking.parent = os.getpid() if is_main else None


def _end_with_parent() -> None:
    if _forking.parent is not None:
        end_with(_forking.parent)


def end_children() -> None:
    """End what multiprocessing left running, which no ``terminate`` does while SIGTERM is blocked.

    Python terminates its daemons at exit and then waits for them without a limit.
    """
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
