"""Read from a run's folder how the run stands, in a moment and without torch."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.folder import step_of
from tst_megatron.checkpoint.run_files import BRANCH, Branch, read_branch, run_of
from tst_megatron.cli.views.events import (
    START,
    Event,
    links_without_progress,
    num_requeues,
    read_events,
    since_last_start,
)
from tst_megatron.cli.views.run_state import State, judge
from tst_megatron.schedule import Phase, Schedule
from tst_megatron.system.records import Damaged
from tst_megatron.training.report.beside_plan import Beside, beside_plan
from tst_megatron.training.report.facts import FACTS, read_facts
from tst_megatron.training.report.metrics_file import (
    BAG_LOSS,
    LM_LOSS,
    MFU,
    VALIDATION_LOSS,
    read_newest,
)
from tst_megatron.training.report.plan_file import read_plan
from tst_megatron.training.report.recorded_schedule import recorded_schedule
from tst_megatron.training.report.versions import newest_layout_after
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.state import read_state

NUM_STEPS_OF_MEDIAN = 50
LEAST_PATIENCE_SECONDS = 1800.0
"""As ``HANG_SECONDS`` of the job scripts: an evaluation and a save record no step."""
PATIENCE_STEPS = 5
_MOST = 1e9
"""Seconds of a step, or TFLOP/s of a device, beyond which a number is damage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """The state of a run. None stands for what the folder does not say (yet)."""

    run: str
    """The folder, as it was given."""
    trunk: str | None
    """The run folder that this run came from, as ``branch.json`` says it; None without one."""
    steps_of_trunk: int
    """Steps that the trunk had made then: this run made none of them."""
    state: State
    reason: str
    exit_status: int | None
    """The status that the last start ended with; 1 while one is running."""
    step: int
    """Optimizer steps recorded; without any, those in the newest checkpoint."""
    num_steps: int
    phase: str
    """Of the last recorded step."""
    bag_size: int
    bag_sizes: tuple[int, ...]
    """Of all phases, in order."""
    steps_to_next_phase: int | None
    next_bag_size: int | None
    raw_tokens: int
    raw_tokens_of_all_steps: int
    loss_name: str | None
    loss_nats: float | None
    validation_loss_nats: float | None
    validation_step: int | None
    step_seconds: float | None
    """Median of the last steps, as the two that follow."""
    raw_tokens_per_second: float | None
    teraflops_per_device: float | None
    mfu: float | None
    """Model FLOPs over the dense BF16 peak of the device, 0-1; None where the peak is not known."""
    seconds_left: float | None
    """At the median, without evaluations, saves and waits. A step costs the same in all phases."""
    estimated_end_utc: str | None
    """Of a run that is running."""
    seconds_since_last_step: float | None
    seconds_since_sign_of_life: float | None
    """Since a step, ``state.json`` or a start of a job changed the folder."""
    checkpoint_step: int | None
    steps_since_checkpoint: int
    """Recorded steps that would be lost."""
    num_starts: int
    """By the job scripts, as the three that follow."""
    num_requeues: int
    jobs: tuple[str, ...]
    """Slurm's numbers, each once."""
    links_without_progress: int
    """Starts in a row, up to the last that ended, which saved nothing."""
    beside_plan: Beside | None
    """None without a plan (``plan.json``), or without a step."""
    has_stop_file: bool
    damaged: tuple[str, ...]
    """Records that cannot be read, so that what they would say is missing here."""


def run_status(path: Path, *, now: float) -> RunStatus:
    """Return how a run stands.

    Args:
        path: its folder, its ``checkpoints/`` or one of these.
        now: seconds since 1970.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no run's.
    """
    run = RunFolder(run_of(path))
    schedule = _schedule(run)
    damaged: list[str] = []
    branch = _read(run.path / BRANCH, lambda path: read_branch(path.parent), damaged)
    newest = partial(read_newest, num_steps=NUM_STEPS_OF_MEDIAN, last_step=schedule.num_steps)
    state = _read(run.state_file, read_state, damaged)
    events = _read(run.slurm / "events.tsv", read_events, damaged) or []
    steps, validation = _read(run.metrics, newest, damaged) or ([], None)
    checkpoint = run.last_checkpoint()
    saved = step_of(checkpoint) if checkpoint else None
    step = steps[-1]["step"] if steps else saved or 0
    phase = schedule.phase_at(max(0, step - 1))

    step_seconds = _median(steps, "step seconds")
    seconds_left = None if step_seconds is None else (schedule.num_steps - step) * step_seconds
    silent = _seconds_since_sign_of_life(run, events, now)
    word, reason = _judged(run, state, events, silent, step_seconds)
    if word == "not started" and damaged:
        word, reason = "unknown", "what would tell it is damaged"
    is_running = word == "running" and seconds_left is not None
    return RunStatus(
        run=str(path),
        trunk=str(branch.trunk) if branch else None,
        steps_of_trunk=branch.step if branch else 0,
        state=word,
        reason=reason,
        exit_status=(state or {}).get("exit_status"),
        step=step,
        num_steps=schedule.num_steps,
        raw_tokens=schedule.raw_tokens_before(step),
        raw_tokens_of_all_steps=schedule.raw_tokens_before(schedule.num_steps),
        **_of_phase(schedule, phase, step),
        **_of_losses(steps, validation),
        step_seconds=step_seconds,
        # Of this phase alone: the median of 50 steps would lag behind a switch.
        raw_tokens_per_second=step_seconds and schedule.raw_tokens_per_step(phase) / step_seconds,
        teraflops_per_device=_median(steps, "TFLOP/s per device"),
        mfu=_median(steps, MFU),
        seconds_left=seconds_left,
        estimated_end_utc=_utc(now + (seconds_left or 0.0)) if is_running else None,
        seconds_since_last_step=max(0.0, now - _changed(run.metrics)) if steps else None,
        seconds_since_sign_of_life=silent,
        checkpoint_step=saved,
        steps_since_checkpoint=max(0, step - (saved or 0)),
        **_of_jobs(events),
        beside_plan=_beside_plan(run, schedule, steps, branch, damaged),
        has_stop_file=run.stop_file.exists(),
        damaged=tuple(damaged),
    )


def _beside_plan(
    run: RunFolder,
    schedule: Schedule,
    steps: Sequence[Mapping[str, Any]],
    branch: Branch | None,
    damaged: list[str],
) -> Beside | None:
    plan = _read(run.plan, read_plan, damaged)
    if plan is None:
        return None
    facts = _read(run.path / FACTS, read_facts, damaged)
    first = max(newest_layout_after(run.versions), branch.step if branch else 0)
    return beside_plan(plan, schedule, steps=steps, facts=facts, first_step=first)


def _judged(
    run: RunFolder,
    state: Mapping[str, Any] | None,
    events: Sequence[Event],
    silent_seconds: float | None,
    step_seconds: float | None,
) -> tuple[State, str]:
    """Return the word for a run's state, and the reason."""
    return judge(
        state,
        state_time=_changed(run.state_file),
        events=events,
        silent_seconds=silent_seconds,
        patience_seconds=max(LEAST_PATIENCE_SECONDS, PATIENCE_STEPS * (step_seconds or 0.0)),
        has_begun=run.has_begun(),
    )


def _read[T](path: Path, reader: Callable[[Path], T], damaged: list[str]) -> T | None:
    """Return what a reader finds. A damaged record is named in a list, and gives None."""
    try:
        return reader(path)
    except Damaged as error:
        damaged.append(f"{path.name} {error}")
        return None


# --- numbers -------------------------------------------------------------------------------------


def _schedule(run: RunFolder) -> Schedule:
    if not run.path.is_dir():
        raise FileNotFoundError(f"{run.path}: there is no such folder")
    if not run.is_prepared():
        raise ValueError(
            f"{run.path}: is no run ({run.resolved.name} is missing), or its first start has not "
            "got that far"
        )
    return recorded_schedule(run.resolved)[0]


def _of_phase(schedule: Schedule, phase: Phase, step: int) -> dict[str, Any]:
    following = [later for later in schedule.phases if later.first_step == phase.last_step]
    return {
        "phase": phase.name,
        "bag_size": phase.bag_size,
        "bag_sizes": tuple(each.bag_size for each in schedule.phases),
        "steps_to_next_phase": phase.last_step - step if following else None,
        "next_bag_size": following[0].bag_size if following else None,
    }


def _of_jobs(events: Sequence[Event]) -> dict[str, Any]:
    return {
        "num_starts": sum(event.name == START for event in events),
        "num_requeues": num_requeues(events),
        "jobs": tuple(dict.fromkeys(event.job for event in events if event.name == START)),
        "links_without_progress": links_without_progress(events),
    }


def _of_losses(
    steps: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
) -> dict[str, Any]:
    name = None
    if steps:
        name = BAG_LOSS if (_number(steps[-1], "bag size") or 1) > 1 else LM_LOSS
    return {
        "loss_name": name,
        "loss_nats": _number(steps[-1], name) if name else None,
        "validation_loss_nats": _number(validation, VALIDATION_LOSS) if validation else None,
        "validation_step": validation["step"] if validation else None,
    }


def _median(steps: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the median of the values that can be meant: above 0, and below ``_MOST``."""
    values = [value for row in steps if 0 < (value := _number(row, name) or 0) < _MOST]
    return statistics.median(values) if values else None


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # An integer may have more digits than a float can hold.
    return value if isinstance(value, float) or abs(value) < sys.float_info.max else None


def _seconds_since_sign_of_life(
    run: RunFolder, events: Sequence[Event], now: float
) -> float | None:
    start, _ = since_last_start(events)
    seen = [_changed(run.metrics), _changed(run.state_file), start.time if start else 0.0]
    return max(0.0, now - max(seen)) if any(seen) else None


def _changed(path: Path) -> float:
    """Return when a file was last written to; 0 if it is missing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
