"""``state.json``: how a run stands, in its own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tst_megatron.system.records import Damaged, read_json

ALL_STEPS = "all steps are done"
STARTED = "started, and ended without saying how"
"""Stands while the run goes on, and after a kill."""

WORDS = ("finished", "stopped", "failed")

KEYS = {"status": str, "reason": str, "step": int, "exit_status": int}
"""What every file of a run says, whatever version wrote it."""


def read_state(path: Path) -> dict[str, Any] | None:
    """What a ``state.json`` says; None where there is none.

    Raises:
        Damaged: nothing that a run writes there.
    """
    state = read_json(path, KEYS)
    if state is not None and state["status"] not in WORDS:
        raise Damaged(f"says the status {state['status'][:40]!r}, which is none")
    return state
