"""Write each rank's report of a preflight, ``rank-N.json``, before every step that may hang."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tst_megatron.system.exit_status import STOPPED
from tst_megatron.system.files import write_beside

CHECKS = (
    *("start", "nvidia-smi", "memory and disks"),
    *("rendezvous", "within the node", "over all nodes", "done"),
)
"""Checks of a rank, in order; its file says which it has reached."""

WITH_OTHER_NODES = ("rendezvous", "over all nodes")
"""Checks that end only if every other node comes: being held up there is not the node's fault."""

OVER_ALL_NODES = "over all nodes: "
"""Start of a problem that may not be the fault of the node that saw it."""

SECONDS_OF_GRACE = 15.0
"""Time that a check gets beyond the timeout of its collectives, whose own error says more."""


@dataclass(kw_only=True, slots=True)
class RankReport:
    """One rank's file."""

    rank: int
    host: str
    attempt: str
    """Job and start that this belongs to; a folder may hold files of an earlier start."""
    check: str = CHECKS[0]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent_ranks: list[int] = field(default_factory=list)
    """Ranks that this one waited for in vain."""
    versions: dict[str, str] = field(default_factory=dict)
    measurements: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0
    """Seconds since 1970 by this node's clock, when the file was written."""


class GaveUp(Exception):
    """A check failed and its problem is written down; the rank cannot continue."""


class Progress:
    """A rank's report and its file, which is written at the start of every check."""

    def __init__(
        self,
        folder: Path,
        report: RankReport,
        *,
        timeout_seconds: float,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """Report in this folder.

        Args:
            folder: exists.
            report: of this rank.
            timeout_seconds: of the collectives; a check that lasts longer ends the process.
            end: ends the process from a thread while the main one hangs in a library.
        """
        self.report = report
        self.timeout_seconds = timeout_seconds
        self._path = folder / f"rank-{report.rank}.json"
        self._end = end
        self._lock = threading.Lock()

    def write(self) -> None:
        """Replace the file by what is known now."""
        # A thread that hangs in the file system has the lock for ever.
        is_mine = self._lock.acquire(timeout=5)
        try:
            self.report.time = time.time()
            write_beside(self._path, json.dumps(asdict(self.report), indent=1) + "\n")
        finally:
            if is_mine:
                self._lock.release()

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Enter a check, and give up when it fails or lasts too long.

        Raises:
            GaveUp: something in the block failed.
        """
        self.report.check = name
        self.write()
        seconds = self.timeout_seconds + SECONDS_OF_GRACE
        scope = OVER_ALL_NODES if name in WITH_OTHER_NODES else ""
        prefix = scope if scope.startswith(name) else f"{scope}{name}: "
        timer = threading.Timer(seconds, self._give_up, [f"{prefix}hung for {seconds:g} s"])
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:
            # Libraries add their stack from the second line on.
            first_line = next(iter(str(error).splitlines()), "")
            self.report.problems.append(f"{prefix}{type(error).__name__}: {first_line}")
            self.write()
            raise GaveUp from error
        finally:
            timer.cancel()

    def end_at_once(self) -> None:
        """End the process: destructors of NCCL wait for a collective that never ends."""
        self._end(STOPPED)

    def _give_up(self, problem: str) -> None:
        self.report.problems.append(problem)
        try:
            self.write()
        finally:
            self._end(STOPPED)


def attempt(environment: Mapping[str, str] = os.environ) -> str:
    """Return the Slurm job and start that this process belongs to; empty outside a job."""
    job = environment.get("SLURM_JOB_ID", "")
    return f"{job}.{environment.get('SLURM_RESTART_COUNT') or 0}" if job else ""


def read_reports(folder: Path, current: str) -> tuple[dict[int, RankReport], list[str]]:
    """Read every rank's report of this attempt, and note files that are not reports of it.

    Args:
        folder: of the preflight; one that does not exist has no files.
        current: this attempt; empty takes any.
    """
    reports, notes = {}, []
    for path in sorted(folder.glob("rank-*.json")):
        if re.fullmatch(r"rank-\d+\.json", path.name) is None:
            continue
        try:
            report = RankReport(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            notes.append(f"{path}: cannot be read ({error})")
            continue
        if current and report.attempt != current:
            notes.append(f"{path}: of another attempt, {report.attempt or 'outside Slurm'}")
            continue
        reports[report.rank] = report
    return reports, notes


def numbers(values: Sequence[int], most: int = 8) -> str:
    """Some ranks in words, a long list cut short."""
    shown = ", ".join(str(value) for value in values[:most])
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"
