"""Tell if a run is running, waits or has ended, by its records, its job scripts and the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tst_megatron.cli.views.events import END, GIVE_UP, REQUEUE, STOP_FILE, Event, since_last_start
from tst_megatron.system.exit_status import DO_NOT_RESTART
from tst_megatron.training.console import duration
from tst_megatron.training.run.state import STARTED

State = Literal[
    "not started",
    "unknown",
    "running",
    "no sign of life",
    "waiting for the next start",
    "stopped",
    "finished",
    "failed",
]

_CLOSING = (END, REQUEUE, GIVE_UP, STOP_FILE)


def judge(
    state: Mapping[str, Any] | None,
    *,
    state_time: float,
    events: Sequence[Event],
    silent_seconds: float | None,
    patience_seconds: float,
    has_begun: bool = False,
) -> tuple[State, str]:
    """Return the state in a word, and the reason.

    What the run itself says comes first, as far as it is of the last start: while one is running,
    ``state.json`` says ``STARTED``, and before it has got that far, what the start before it said.

    Args:
        state: what ``state.json`` says; None if it is not there.
        state_time: when it was written, in seconds since 1970.
        events: what the job scripts wrote; none without them.
        silent_seconds: since the run's last sign of life; None if there was none.
        patience_seconds: a run that is silent for longer is not taken to go on.
        has_begun: ranks have left something in the folder.
    """
    start, after = since_last_start(events)
    is_begun = state is not None and state["reason"] == STARTED
    if is_begun and any(event.time < state_time for event in after if event.name in _CLOSING):
        # Started by hand after the last job ended: no job's events tell of it.
        start, after = None, [event for event in after if event.time >= state_time]
    ends = [event for event in after if event.name == END]
    is_older = start is not None and state_time < start.time
    if state is not None and state["status"] == "finished":
        return "finished", state["reason"]
    # A run that has not obeyed the file yet is still running.
    closing = [
        event
        for event in after
        if event.name in (REQUEUE, GIVE_UP)
        or (event.name == STOP_FILE and (ends or start is None or not (is_begun or is_older)))
    ]
    if closing:
        return _of_the_chain(closing[-1], state)
    if not ends and (is_begun or is_older):
        job = f"job {start.job}" if start else ""
        if silent_seconds is None or silent_seconds <= patience_seconds:
            return "running", job
        who = f"{job} started, and has" if job else "the run has"
        return "no sign of life", f"for {duration(silent_seconds)}: {who} said nothing since"
    if is_older and start is not None:
        return "failed", _with(f"job {start.job} ended before training began", ends[-1].text)
    if state is None and has_begun:
        return "unknown", "state.json is missing, and nothing else says how the last start ended"
    if state is None:
        return "not started", "no start has written state.json"
    if is_begun:
        return "failed", _with(STARTED, ends[-1].text)
    is_last = state.get("exit_status") == DO_NOT_RESTART
    return state["status"], _with(state["reason"], "not to be restarted" if is_last else "")


def _of_the_chain(event: Event, state: Mapping[str, Any] | None) -> tuple[State, str]:
    """Return what a job script has decided."""
    if event.name == GIVE_UP:
        return "failed", f"job {event.job} gave up" + (f": {event.text}" if event.text else "")
    if event.name == STOP_FILE:
        return "stopped", "by the file STOP; take it away to go on"
    ended = ""
    if state is not None:
        is_begun = state["reason"] == STARTED
        ended = state["reason"] if is_begun else f"{state['status']}, {state['reason']}"
    texts = [event.text, f"the last one: {ended}" if ended else ""]
    return "waiting for the next start", "; ".join(text for text in texts if text)


def _with(text: str, more: str) -> str:
    return f"{text} ({more})" if more else text
