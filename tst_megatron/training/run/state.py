"""Read ``state.json``, in which a run says how it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tst_megatron.system.records import Damaged, read_json

ALL_STEPS = "all steps are done"
STARTED = "started, and ended without saying how"
"""The reason while the run is running, and after a kill."""

WORDS = ("finished", "stopped", "failed")

KEYS = {"status": str, "reason": str, "step": int, "exit_status": int}
"""What every file of a run says, whatever version wrote it."""


def read_state(path: Path) -> dict[str, Any] | None:
    """Return what a ``state.json`` says; None if it is missing.

    Raises:
        Damaged: its content is not what a run writes.
    """
    state = read_json(path, KEYS)
    if state is not None and state["status"] not in WORDS:
        raise Damaged(f"says the status {state['status'][:40]!r}, which is none")
    return state
