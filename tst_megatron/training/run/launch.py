"""Start the ranks of a small job on this machine; on a cluster, srun or torchrun starts them."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console

from tst_megatron.system.exit_status import BAD_INPUT, INTERRUPTED, STOPPED
from tst_megatron.system.machine.cores import num_cores
from tst_megatron.system.processes import signals as stopping

PASSED_ON = stopping.STOP_SIGNALS
"""Signals to this command that every rank gets."""

LAUNCHER = "TST_LAUNCHER"
"""The process that started a rank, by ``launch``."""

SECONDS_TO_STOP = 15.0
"""How long the other ranks have to end after one has failed."""

SECONDS_TO_SAVE = 600.0
"""How long they have after one has stopped as asked: others may still be writing a checkpoint."""

LOWEST_PORT = 15_000
"""Above the ports that services are usually given."""
LINUX_FIRST_PORT = 32_768
"""The first port that Linux hands out unasked, unless it is told otherwise."""


def launch(
    command: Sequence[str],
    *,
    num_processes: int,
    logs: Path,
    console: Console,
    on_failure: Callable[[str], None] = lambda reason: None,
) -> int:
    """Run one process per rank and wait for all of them.

    A stop signal is passed on to every rank; a second Ctrl-C ends them at once. When a rank fails,
    the others are ended, and the end of its log is shown. Ranks end with this process, whatever
    ends it: called from the main thread.

    Args:
        command: arguments of ``tst-megatron`` for each rank.
        num_processes: ranks.
        logs: folder that holds ``rank-N.log``.
        console: where failures are shown.
        on_failure: told how the first rank that failed has ended.

    Returns:
        The first status that is not 0, or 0.
    """
    signals = _Signals()
    sizes = [_size(logs / f"rank-{rank}.log") for rank in range(num_processes)]
    # A stop signal waits until this process can pass it on, and in a rank until it listens.
    with stopping.blocked():
        before = {number: signal.signal(number, signals.take) for number in PASSED_ON}
        processes = _start(command, num_processes)
        signals.pass_on_to(processes)
    try:
        failed = _wait(processes)
        if signals.is_interrupted_twice():
            return INTERRUPTED
        if failed is None:
            return 0
        status = processes[failed].returncode
        if status not in (BAD_INPUT, STOPPED):
            ended = f"rank {failed} {_how_it_ended(status)}"
            _show_end_of(logs / f"rank-{failed}.log", sizes[failed], ended, console)
            on_failure(ended)
        # A rank that a signal ended has a negative status, which no shell can pass on.
        return status if status > 0 else 128 - status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()


class _Signals:
    """The signals that this process gets, and the ranks that get them from it."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._first_at = 0.0
        self._processes: Sequence[subprocess.Popen[bytes]] = ()

    def take(self, number: int, _: FrameType | None) -> None:
        if not self._received:
            self._first_at = time.monotonic()
        elif number == signal.SIGINT and self._is_same_stop():
            return
        self._received.append(number)
        self._send(number)

    def pass_on_to(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Send ranks all signals, also those received before.

        Another thread may take what this one blocks.
        """
        self._processes = processes
        for number in tuple(self._received):
            self._send(number)

    def _is_same_stop(self) -> bool:
        """Tell if this is the first Ctrl-C once more, through whatever started this command."""
        return time.monotonic() - self._first_at < stopping.SECONDS_OF_ONE_STOP

    def is_interrupted_twice(self) -> bool:
        return self._received.count(signal.SIGINT) > 1

    def _send(self, number: int) -> None:
        if number == signal.SIGINT:
            # A terminal sends it to the ranks too, which would take ours for a second one.
            number = signal.SIGKILL if self.is_interrupted_twice() else signal.SIGTERM
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)


def _start(command: Sequence[str], num_processes: int) -> list[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(num_processes),
        LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": threads_of_a_rank(num_processes),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tst_megatron", *command],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            # Also while it still imports; see `end_with` for the thread.
            preexec_fn=partial(stopping.end_with, os.getpid()),
        )
        for rank in range(num_processes)
    ]


def threads_of_a_rank(num_ranks: int) -> str:
    """``OMP_NUM_THREADS`` of each of the ranks here: what the user gave, or its share of cores."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // num_ranks))


def take_threads_of_the_only_rank() -> None:
    """Have this process, which is a job's only rank, use as many threads as a started one."""
    is_given = bool(os.environ.get("OMP_NUM_THREADS"))
    # Read once, when torch is imported.
    os.environ["OMP_NUM_THREADS"] = threads_of_a_rank(1)
    if "torch" in sys.modules and not is_given:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def is_started_here() -> bool:
    """Tell if ``launch`` has started this process as a rank, and its caller still lives."""
    return os.environ.get(LAUNCHER) == str(os.getppid())


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended; the rank that was first to end with a status, if any was."""
    while True:
        statuses = [process.poll() for process in processes]
        failed = [rank for rank, status in enumerate(statuses) if status not in (None, 0)]
        if None not in statuses or failed:
            break
        time.sleep(0.1)
    if not failed:
        return None
    _wait_for_others(processes, has_stopped=processes[failed[0]].returncode == STOPPED)
    return failed[0]


def _wait_for_others(processes: Sequence[subprocess.Popen[bytes]], *, has_stopped: bool) -> None:
    """Wait until all have ended or their time is over, which is short once one has failed."""
    first_failure = None if has_stopped else time.monotonic()
    deadline = time.monotonic() + SECONDS_TO_SAVE
    while time.monotonic() < deadline:
        statuses = [process.poll() for process in processes]
        if None not in statuses:
            return
        if first_failure is None and any(status not in (None, 0, STOPPED) for status in statuses):
            first_failure = time.monotonic()
        if first_failure is not None and time.monotonic() - first_failure > SECONDS_TO_STOP:
            return
        time.sleep(0.1)


def _how_it_ended(status: int) -> str:
    """Return how a rank ended, from its ``Popen.returncode``."""
    if status > 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    help_ = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{help_}"


def _show_end_of(log: Path, size_before: int, ended: str, console: Console) -> None:
    """Show the last lines that this start has written into a log."""
    console.print(f"{ended}. The end of {log}:", highlight=False, markup=False, soft_wrap=True)
    lines = []
    if _size(log) > size_before:
        with log.open("rb") as file:
            file.seek(size_before)
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    shown = lines[-30:] or ["(nothing of this start)"]
    console.print("\n".join(shown), highlight=False, markup=False, soft_wrap=True)


def _size(log: Path) -> int:
    return log.stat().st_size if log.is_file() else 0


def free_port() -> int:
    """Return a TCP port of this machine that nothing uses now, nor is given until it is wanted.

    The first rank binds it seconds later. A port that the kernel hands out would be given to any
    outgoing connection meanwhile, so it is drawn from below those.
    """
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(LOWEST_PORT, _first_handed_out())
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _first_handed_out() -> int:
    """Return the lowest port that the kernel gives to connections unasked."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        first = LINUX_FIRST_PORT
    # Where nearly all ports are handed out, none is safe, and any will do.
    return first if first > LOWEST_PORT + 1000 else LINUX_FIRST_PORT
