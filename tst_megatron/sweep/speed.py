"""Measure how fast the runs of a sweep train, and estimate how long the rest of it takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tst_megatron.sweep.plan import PlannedRun, SweepPlan
from tst_megatron.system.records import Damaged
from tst_megatron.training.report.metrics_file import read_newest
from tst_megatron.training.run.state import read_state

FEWEST_STEPS = 10
"""Steps of a run before its speed counts: the first ones of a start are slow."""
NUM_STEPS_OF_MEDIAN = 50
MOST_BYTES = 1 << 17
"""Of the end of a run's metrics: more than the rows of so many steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """The speed of the runs that have trained some steps."""

    by: tuple[str, ...]
    """Runs that were measured."""
    step_seconds: float
    """Mean over those runs of the median of their last steps."""


def is_finished(folder: Path) -> bool:
    """Tell whether a run says that all of its steps are done."""
    try:
        state = read_state(folder / "state.json")
    except Damaged:
        return False
    return state is not None and state["status"] == "finished"


def own_steps_done(plan: SweepPlan, run: PlannedRun) -> int:
    """Return how many steps of its own a run has recorded."""
    rows = _newest_rows(plan, run, num_steps=1)
    return int(rows[-1]["step"]) - _first(run) if rows else 0


def measure(plan: SweepPlan) -> Speed | None:
    """Return the speed of the runs so far; None before one has trained enough steps."""
    medians = {run.name: seconds for run in plan.runs if (seconds := _step_seconds(plan, run))}
    if not medians:
        return None
    return Speed(by=tuple(medians), step_seconds=statistics.fmean(medians.values()))


def _step_seconds(plan: SweepPlan, run: PlannedRun) -> float | None:
    rows = _newest_rows(plan, run, num_steps=NUM_STEPS_OF_MEDIAN)
    found = [row["step seconds"] for row in rows if isinstance(row.get("step seconds"), float)]
    is_enough = len(found) >= min(FEWEST_STEPS, run.num_own_steps)
    return statistics.median(found) if found and is_enough else None


def _newest_rows(plan: SweepPlan, run: PlannedRun, *, num_steps: int) -> list[dict[str, Any]]:
    """Return the newest rows of the steps that a run has trained itself."""
    path = plan.run(run.name) / "metrics.jsonl"
    try:
        rows, _ = read_newest(
            path, num_steps=num_steps, last_step=run.num_steps, most_bytes=MOST_BYTES
        )
    except Damaged:
        return []
    return [row for row in rows if row["step"] > _first(run)]


def _first(run: PlannedRun) -> int:
    return run.trunk.step if run.trunk else 0


def seconds_left(
    plan: SweepPlan, done: Mapping[str, int], *, speed: Speed, start_seconds: float, at_once: int
) -> float:
    """Estimate the time that the rest of a sweep takes.

    Args:
        plan: of the sweep.
        done: steps of its own that each run has made.
        speed: of the runs so far, as many at a time as in the rest.
        start_seconds: until a run trains its first step.
        at_once: runs that train at the same time.
    """
    left = [run.num_own_steps - done[run.name] for run in plan.runs]
    num_starts = sum(done[run.name] == 0 for run in plan.runs)
    work = sum(left) * speed.step_seconds + num_starts * start_seconds
    # The longest run takes its time, however many train beside it.
    return max(work / at_once, max(left, default=0) * speed.step_seconds)
