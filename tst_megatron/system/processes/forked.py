"""Let a forked process work something out, so that nothing of the work stays in this process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable

MOST_BYTES = 60_000
"""Bytes of an answer, which fit into a pipe at once."""


def answer_of_fork(
    work: Callable[[], str], *, of_error: Callable[[BaseException], str], seconds: float
) -> str | None:
    """Return what a function says in a forked process, which ends with it.

    Args:
        work: runs in the child, whose standard streams lead nowhere.
        of_error: what the child says of an exception of ``work``.
        seconds: the longest that the child may take.

    Returns:
        The answer, empty if the child was killed; None if it takes too long.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Of threads in this process: the child uses none of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(reading)
        _be_the_child(work, of_error, writing)
    os.close(writing)
    try:
        return _read_until_closed(reading, seconds)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _read_until_closed(pipe: int, seconds: float) -> str | None:
    """Return what the child says before it ends; None if that takes too long."""
    said, deadline = b"", time.monotonic() + seconds
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(pipe, 65536)
        if not part:
            return said.decode(errors="replace")
        said += part
    return None


def _be_the_child(
    work: Callable[[], str], of_error: Callable[[BaseException], str], pipe: int
) -> None:
    """Work, say what came of it, and end without running anything of the parent's."""
    said = ""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        # A thread of the parent's may have held the locks of those that were there.
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        said = work()
    except BaseException as error:
        said = of_error(error)
    finally:
        with contextlib.suppress(OSError):
            os.write(pipe, said.encode(errors="replace")[:MOST_BYTES])
        os._exit(0)
