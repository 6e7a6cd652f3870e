"""The ways in which a start ends: exit status, word and reason, and who of the ranks records them.

``state.json`` is written first when a start begins. What it says then stands if the start is
killed. The end replaces it.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tst_megatron.checkpoint.folder import step_of
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system.exit_status import BAD_INPUT, DO_NOT_RESTART, FAILED, FINISHED, STOPPED
from tst_megatron.system.records import Damaged
from tst_megatron.training.report.metrics_file import events_at
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.state import ALL_STEPS, STARTED

if TYPE_CHECKING:
    from tst_megatron.training.run.plan import RunPlan


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a start, as ``state.json`` says it."""

    status: int
    """Exit status of the process."""
    word: str
    """``finished``, ``stopped`` or ``failed``."""
    reason: str
    sick_node: str | None = None
    """The node that a restart must avoid."""


ALL_DONE = Ending(FINISHED, "finished", ALL_STEPS)


# --- what an exit of Megatron's means -------------------------------------------------------------

_REFUSED_RESULT = (16, 17)
"""Exit statuses of Megatron's rerun state machine."""

_GO_ON = "go on at your own risk with rerun-mode=disabled"

# By the state in which the rerun state machine ended the run. Megatron would ask for one restart
# after the other on the same device (Megatron-LM issue 5281), so the second one is the last.
_MEANING_OF_REFUSAL = {
    "RERUNNING_IN_PLACE": (
        STOPPED,
        "stopped",
        "but not when {node} computed it again: a fault of that node. Restart on another",
    ),
    "WILL_RERUN_FROM_CHECKPOINT": (
        STOPPED,
        "stopped",
        "and again when {node} computed it a second time. Restarting on the same node will not "
        "help: restart on another, to tell a fault of this one from a bug, or " + _GO_ON,
    ),
    "RERUNNING_AGAIN_FROM_CHECKPOINT": (
        DO_NOT_RESTART,
        "failed",
        "and the run was restarted on {node}, where it had been found. Restarting on the same "
        "node will not help: restart on another, or " + _GO_ON,
    ),
    "RERUNNING_FROM_CHECKPOINT": (
        DO_NOT_RESTART,
        "failed",
        "and {node} was the second to compute it: the end of its log says whether the first was "
        "at fault. Restarting will not help: " + _GO_ON,
    ),
}


def ending_of_exit(code: object, rank: int) -> Ending:
    """Return what Megatron's exit means.

    Args:
        code: Megatron's exit status, or the text that Python takes instead of one.
        rank: this process's.
    """
    if code == 0:
        return Ending(STOPPED, "stopped", "asked to stop; a checkpoint was saved")
    if code not in _REFUSED_RESULT:
        traceback.print_exc()
        said = code if isinstance(code, str) else f"exit status {code}"
        return Ending(FAILED, "failed", f"rank {rank}: {said}")
    # Importing Megatron takes seconds, and a launcher needs none. A rank has imported it by now.
    from tst_megatron.megatron import loop

    what, node, state = loop.refused_result()
    status, word, verdict = _MEANING_OF_REFUSAL[state]
    reason = f"{what}, {verdict.format(node=node or 'one of the nodes')}"
    return Ending(status, word, reason, node if status == STOPPED else None)


# --- what state.json says -------------------------------------------------------------------------


def note_start(run: RunFolder, device: str) -> None:
    """Say that a start has begun. If the start is killed, this is what its state says."""
    record(run, Ending(FAILED, "failed", STARTED), device=device)


def record(run: RunFolder, ending: Ending, *, device: str) -> None:
    """Write how a start ended into ``state.json``, with the step of the newest checkpoint."""
    checkpoint = run.last_checkpoint()
    step = step_of(checkpoint) if checkpoint else 0
    run.write_state(
        ending.word,
        reason=ending.reason,
        step=step,
        device=device,
        exit_status=ending.status,
        sick_node=ending.sick_node,
    )


def note_failure(run: RunFolder, reason: str, status: int) -> None:
    """Say why a start that was noted has failed, unless a rank has said it."""
    state = run.state()
    if state is not None and state["reason"] == STARTED:
        # On a full disk, for example, the console alone tells what ended this start.
        with contextlib.suppress(OSError):
            device, step = str(state.get("device", "unknown")), state["step"]
            run.write_state("failed", reason=reason, step=step, device=device, exit_status=status)


@contextlib.contextmanager
def failure_noted(run: RunFolder, rank: int | None) -> Iterator[None]:
    """Note what ends a start that has been noted, before this rank has a log of its own."""
    try:
        yield
    except Exception as error:
        is_refused = isinstance(error, RecipeError)
        reason = "; ".join(error.problems) if isinstance(error, RecipeError) else repr(error)
        note_failure(run, f"rank {rank or 0}: {reason}", BAD_INPUT if is_refused else FAILED)
        raise


def has_failed_since(run: RunFolder, before: dict[str, Any] | None) -> bool:
    """Tell whether another rank has written that it failed; later failures are a consequence.

    Args:
        run: the folder.
        before: ``run.state()`` as it was when this rank started.
    """
    now = run.state()
    return (
        now is not None and now != before and now["status"] == "failed" and now["reason"] != STARTED
    )


def wait_until_ended(run: RunFolder, *, seconds: float = 120.0) -> None:
    """Wait until the first rank has said how a run ended that all ranks end together.

    A scheduler takes the first rank that ends with a status for a failure, and ends the others:
    the first rank too, which may still be writing.
    """
    deadline = time.monotonic() + seconds
    while (run.state() or {}).get("reason") == STARTED and time.monotonic() < deadline:
        time.sleep(0.1)


def write_finished(run: RunFolder, plan: RunPlan) -> None:
    """Say that the run is finished, also where it ended before it could say so itself."""
    checkpoint, state = run.last_checkpoint(), run.state() or {}
    if checkpoint is not None and state.get("status") != "finished":
        device = str(state.get("device", "unknown"))
        record(run, finished(run, plan), device=device)


def finished(run: RunFolder, plan: RunPlan) -> Ending:
    """Return the ending of a run with a checkpoint of its last step, and say what it lacks.

    A stop may come between that checkpoint and the last evaluation.
    """
    reason = ALL_STEPS
    if plan.last_evaluations:
        try:
            if not plan.last_evaluations <= events_at(run.metrics, plan.schedule.num_steps):
                reason = f"{ALL_STEPS}; the last evaluation was cut off"
        except Damaged as error:
            reason = f"{ALL_STEPS}; {run.metrics.name} {error}"
    return Ending(FINISHED, "finished", reason)


# --- what a person reads --------------------------------------------------------------------------


def say_failure(console: Console, reason: str, log: Path) -> None:
    """Say on the console, in one line, why this rank ends and where its log is."""
    line = f"failed: {reason} (log: {log})"
    # Who has closed the terminal hears nothing, and the rank ends as it would have.
    with contextlib.suppress(OSError):
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
