"""The console of a command or a rank: the plan, single lines, and output sent to a log."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    # Import numpy, and `tst-megatron status` is to answer in less time than that takes.
    from tst_megatron.recipe.check.checked import CheckedRecipe
    from tst_megatron.recipe.check.plain import PlainCheck


def announce(checked: CheckedRecipe | PlainCheck, console: Console) -> None:
    """Show what the run will do, and warn its owner."""
    for line in checked.plan():
        console.print(line, highlight=False, soft_wrap=True)
    for warning in checked.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def tell(line: str) -> None:
    """Print a line as it is, however long, without markup."""
    Console().print(line, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return a time in its two largest units, such as ``3 h 20 min``."""
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    left = round(seconds)
    counts = []
    for unit, size in units:
        counts.append((left // size, unit))
        left %= size
    first = next((number for number, (count, _) in enumerate(counts) if count), len(counts) - 1)
    shown = [f"{count} {unit}" for count, unit in counts[first : first + 2] if count]
    return " ".join(shown) or "0 s"


class RankConsole(Console):
    """A console that falls silent when nobody reads it any more.

    The class of rich ends the process then, and throws away what it writes to its log.
    """

    def on_broken_pipe(self) -> None:
        """Say no more."""
        self.quiet = True


def redirect_output_to(path: str) -> Console:
    """Send everything this process prints to a file, and keep a console on what was there before.

    Megatron, NCCL and C++ print from anywhere, so the file descriptors themselves are exchanged.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(1), "w", buffering=1)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return RankConsole(file=terminal)
