"""What every thread of a rank is doing, into its log, on SIGUSR1: for a run that hangs.

``faulthandler`` writes it from C, so it also shows a rank that waits in a collective.
"""

from __future__ import annotations

import faulthandler
import signal
import threading

SIGNAL = signal.SIGUSR1

_THREAD = "stacks"


def listen() -> None:
    """Write the stacks of all threads to standard error at each SIGUSR1 from now on.

    The signal stays blocked but in one thread of ours. Loader and checkpoint workers inherit that
    mask, and live on when a scheduler signals the whole step.
    """
    if any(thread.name == _THREAD for thread in threading.enumerate()):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
    # The descriptor: what it leads to is exchanged later, for the log of the rank.
    faulthandler.register(SIGNAL, file=2, all_threads=True)
    threading.Thread(target=_take, name=_THREAD, daemon=True).start()


def _take() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [SIGNAL])
    while True:
        # Python's part of a signal needs no thread; this one only has to be there.
        signal.pause()
