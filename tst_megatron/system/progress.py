"""Show progress: a bar on a terminal, or a line a minute in a job's log. And print warnings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def byte_progress(
    console: Console | None, what: str, total: int, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the bytes done since its last call.

    Args:
        console: shows the progress; None shows nothing.
        what: a name of the work, such as "tokenising".
        total: bytes of all of it.
        done: bytes that an earlier run has done.
    """
    if console is None:
        yield lambda num_bytes: None
    elif console.is_terminal:
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        task = bar.add_task(what, total=total, completed=done)
        with bar:
            yield lambda num_bytes: bar.advance(task, num_bytes)
    else:
        yield _lines(console, what, total, done)


def say_warning(console: Console, text: str) -> None:
    """Print a sentence that a person may want to act on."""
    console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def document_progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of documents on a terminal; the yielded function advances it."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task(what, total=total)
    with bar:
        yield lambda documents: bar.advance(task, documents)


def _lines(console: Console, what: str, total: int, done: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    begun_at = done

    def advance(num_bytes: int) -> None:
        nonlocal done, last
        done += num_bytes
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        speed = max(done - begun_at, 1) / (now - start)
        console.print(
            f"{what}: {done / 1e9:,.2f} of {total / 1e9:,.2f} GB, {speed / 1e6:,.1f} MB/s, "
            f"{max(total - done, 0) / speed / 60:,.0f} minutes left",
            highlight=False,
            soft_wrap=True,
        )

    return advance
