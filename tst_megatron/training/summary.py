"""Sum up a run at the end of a start: how far it is, its losses, its places, what comes next."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.run_files import read_branch, steps_of_trunk
from tst_megatron.schedule import Schedule
from tst_megatron.system.files import write_beside
from tst_megatron.system.records import Damaged
from tst_megatron.training.console import duration
from tst_megatron.training.report.beside_plan import beside_plan
from tst_megatron.training.report.facts import FACTS, read_facts
from tst_megatron.training.report.losses import PICTURE, draw_losses
from tst_megatron.training.report.metrics_file import (
    BAG_LOSS,
    LM_LOSS,
    SAID,
    TEST_LOSS,
    VALIDATION_LOSS,
    read_metrics,
)
from tst_megatron.training.report.plan_file import read_plan
from tst_megatron.training.report.show_beside import lines_of
from tst_megatron.training.report.versions import newest_layout_after
from tst_megatron.training.run.folder import RunFolder

SUMMARY = "summary.txt"
"""In the ``report/`` of a run: what its last start said at its end."""

Say = Callable[[str], None]


def end_with_summary(
    run: RunFolder, schedule: Schedule, *, say: Say, seconds: float, log: Path, resume: str
) -> None:
    """Draw the losses of a run that has finished or stopped, and say how it stands.

    Nothing here fails a run that has done its work.

    Args:
        run: its folder, whose ``state.json`` says how it ended.
        schedule: of the run.
        say: takes a line for a person.
        seconds: that this start took.
        log: of the rank that says it.
        resume: the command that resumes a run that has stopped.
    """
    picture = draw(run, say=say)
    state = run.state() or {}
    shown = [
        f"{state.get('status', 'ended')}: {state.get('reason', '')}",
        *_aligned(
            [
                *_numbers(run, schedule),
                ("time", f"{duration(seconds)} for this start"),
                *_beside_plan(run, schedule),
                *_places(run, picture, log),
                ("next", _next(run, state, resume)),
            ]
        ),
    ]
    for line in shown:
        say(line)
    try:
        run.report.mkdir(exist_ok=True)
        write_beside(run.report / SUMMARY, "\n".join(shown) + "\n")
    except OSError as error:
        say(f"{run.report / SUMMARY}: was not written: {error}")


def say_finished(run: RunFolder, schedule: Schedule, *, say: Say) -> None:
    """Say that a run was finished before, where it is and what comes next."""
    say(f"{run.path}: this run is finished.")
    picture = run.report / PICTURE
    if not picture.exists() and run.metrics.exists():
        # Of a version that drew none.
        picture = draw(run, say=say) or picture
    found = [*_numbers(run, schedule), *_places(run, picture if picture.exists() else None, None)]
    for line in _aligned([*found, ("next", export_command(run))]):
        say(line)


def wait_for_summary(run: RunFolder, *, seconds: float = 20.0) -> None:
    """Wait until the first rank has said how the run ended.

    A scheduler ends the first rank too when another one ends with a status, as all do at a stop.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if _changed(run.report / SUMMARY) >= _changed(run.state_file):
            return
        time.sleep(0.1)


def draw(run: RunFolder, *, say: Say) -> Path | None:
    """Draw a run's losses into its ``report/``; says why there is no picture, and gives None."""
    picture = run.report / PICTURE
    try:
        run.report.mkdir(exist_ok=True)
        draw_losses(run.metrics, picture)
    except Exception as error:
        # Whatever a damaged record or a broken matplotlib raises: the run has done its work.
        say(f"{picture}: was not drawn: {error}")
        return None
    return picture


def export_command(run: RunFolder) -> str:
    """Return the command that writes a run's newest checkpoint in Hugging Face format."""
    output = run.path / "hf"
    number = 2
    while os.path.lexists(output):
        output, number = run.path / f"hf-{number}", number + 1
    return shlex.join(["tst-megatron", "export", str(run.path), str(output)])


def _next(run: RunFolder, state: Mapping[str, Any], resume: str) -> str:
    return export_command(run) if state.get("status") == "finished" else resume


def _numbers(run: RunFolder, schedule: Schedule) -> list[tuple[str, str]]:
    """Steps, raw tokens and the last of each loss, as far as they are recorded."""
    steps = _rows(run, "step")
    step = (run.state() or {}).get("step") or 0
    found = [
        *_trunk(run),
        ("steps", f"{step:,} of {schedule.num_steps:,}"),
        ("raw tokens", f"{schedule.raw_tokens_before(step):,}"),
    ]
    wanted = (
        (BAG_LOSS, steps),
        (LM_LOSS, steps),
        (VALIDATION_LOSS, _rows(run, "validation")),
        (TEST_LOSS, _rows(run, "test")),
    )
    for name, rows in wanted:
        row = next((row for row in reversed(rows) if isinstance(row.get(name), int | float)), None)
        if row is not None:
            found.append((SAID[name], f"{row[name]:.4f} nats at step {row['step']:,}"))
    return found


def _beside_plan(run: RunFolder, schedule: Schedule) -> list[tuple[str, str]]:
    """Return what the run has done beside its plan, by all of its steps; nothing without one."""
    try:
        plan, facts = read_plan(run.plan), read_facts(run.path / FACTS)
    except Damaged:
        # The next start says what is damaged.
        return []
    if plan is None:
        return []
    first, steps = newest_layout_after(run.versions), _rows(run, "step")
    with contextlib.suppress(Damaged):
        first = max(first, steps_of_trunk(run.path))
    beside = beside_plan(plan, schedule, steps=steps, facts=facts, first_step=first)
    return lines_of(beside) if beside else []


def _trunk(run: RunFolder) -> list[tuple[str, str]]:
    branch = None
    with contextlib.suppress(Damaged):
        branch = read_branch(run.path)
    return [("trunk", branch.words())] if branch else []


def _rows(run: RunFolder, event: str) -> Sequence[Mapping[str, Any]]:
    try:
        return read_metrics(run.metrics, event=event)
    except (Damaged, OSError):
        # The picture, or its lack, tells of it.
        return []


def _places(run: RunFolder, picture: Path | None, log: Path | None) -> list[tuple[str, str]]:
    places = [
        ("run folder", run.path),
        ("checkpoint", run.last_checkpoint()),
        ("losses", picture),
        ("log", log),
    ]
    return [(name, str(path)) for name, path in places if path is not None]


def _aligned(lines: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {text}" for name, text in lines]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
