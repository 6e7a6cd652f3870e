"""``slurm/events.tsv``: what the job scripts of a run wrote down about its starts and ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tst_megatron.system.records import read_bytes

START = "start"
END = "end"
REQUEUE = "requeue"
"""The job is in the queue again."""
GIVE_UP = "give-up"
"""No further start comes unless a person submits one."""
STOP_FILE = "stop-file"
"""The script found the run's file ``STOP``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line. Names other than those above are kept, and decide nothing."""

    time: float
    """Seconds since 1970, by the clock of the node."""
    job: str
    """Slurm's number."""
    name: str
    step: int | None
    """Of the newest checkpoint at that moment."""
    text: str


def read_events(path: Path) -> list[Event]:
    """Read the lines of a file that may be missing; a line that a killed script tore is left out.

    Raises:
        Damaged: it cannot be read.
    """
    lines = (read_bytes(path) or b"").decode("utf-8", errors="replace").splitlines()
    return [event for line in lines if (event := _event(line)) is not None]


def _event(line: str) -> Event | None:
    time, *rest = line.split("\t", 4)
    if len(rest) < 3:
        return None
    job, name, step, text = (*rest, "")[:4]
    try:
        seconds = datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    # Python converts no more digits than some thousands.
    has_step = step.isdecimal() and len(step) < 19
    return Event(time=seconds, job=job, name=name, step=int(step) if has_step else None, text=text)


def since_last_start(events: Sequence[Event]) -> tuple[Event | None, Sequence[Event]]:
    """Return the last start and what came after it; without any start, None and all events."""
    for number in reversed(range(len(events))):
        if events[number].name == START:
            return events[number], events[number + 1 :]
    return None, events


def num_requeues(events: Sequence[Event]) -> int:
    """Count how often a job was started again or waits for that; Slurm also does so unasked."""
    starts = [event.job for event in events if event.name == START]
    _, later = since_last_start(events)
    is_waiting = any(event.name == REQUEUE for event in later)
    return len(starts) - len(set(starts)) + is_waiting


def links_without_progress(events: Sequence[Event]) -> int:
    """Count the last starts, in a row, that ended without a new checkpoint.

    A start has ended when its job says so, or when another start follows: a node that dies writes
    nothing. One that still runs is not counted, and what it saved before it ended is progress.
    """
    starts = [number for number, event in enumerate(events) if event.name == START]
    count = 0
    for start, after in itertools.pairwise([*starts, len(events)]):
        link = events[start:after]
        has_ended = after < len(events) or any(
            event.name in (END, REQUEUE, GIVE_UP) for event in link
        )
        # The start that follows says what this one had saved, also if this one could not.
        seen = [event.step for event in events[start : after + 1] if event.step is not None]
        if seen and max(seen) > seen[0]:
            count = 0
        elif seen and has_ended:
            count += 1
    return count
