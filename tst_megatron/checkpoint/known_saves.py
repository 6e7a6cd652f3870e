"""Find out from a run's records that it once saved, when its checkpoints are missing.

A run without checkpoints is new, or was killed before its first save was complete, or its
checkpoints are gone: deleted, moved, on a file system that is not mounted. The first two start from
step 0. The third must not: that would throw the run away.

``saves.json`` tells them apart. It is made when a run is prepared, and rewritten when a save is
complete. Older run folders lack it, so the other records are asked too; each line of evidence
below follows from a completed save, and none of a run that was killed before it. No record here is
needed: one that is missing or damaged is no evidence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tst_megatron.system.files import write_beside
from tst_megatron.system.records import Damaged, read_json, read_yaml

SAVES = "saves.json"
_NEWEST = "newest completed save"


def note_save(run: Path, step: int) -> None:
    """Record that the save of a step is complete, or with step 0 that none is yet."""
    write_beside(run / SAVES, json.dumps({_NEWEST: step}) + "\n")


def noted_save(run: Path) -> int | None:
    """Return the step that ``note_save`` recorded last; None where nothing can be read."""
    return _number(_block(run / SAVES).get(_NEWEST))


def known_saves(run: Path) -> list[str]:
    """List the evidence that a save of this run was once complete, a few words each."""
    noted = noted_save(run)
    found = {SAVES: noted, **_said_by_records(run)}
    if noted is None:
        # Rows tell less surely: some may have been lost.
        found["metrics.dropped.jsonl"] = _step_gone_on_from(run / "metrics.dropped.jsonl")
        found["metrics.jsonl"] = _step_beyond_a_save(run)
    return [f"{name} knows step {step}" for name, step in found.items() if step]


def _said_by_records(run: Path) -> dict[str, int | None]:
    """By record, the step of a checkpoint that it has seen."""
    layouts = _block(run / "versions.json").get("layouts")
    starts = [_number(entry.get("after step")) for entry in _blocks(layouts)]
    return {
        # Both are of a checkpoint that Megatron's tracker file named.
        "state.json": _number(_block(run / "state.json").get("step")),
        "slurm/events.tsv": max(_tracked_by_jobs(run / "slurm" / "events.tsv"), default=None),
        # Steps that a start resumed from.
        "versions.json": max((step for step in starts if step), default=None),
    }


def _tracked_by_jobs(events: Path) -> Iterator[int]:
    for line in _lines(events):
        fields = line.split("\t")
        if len(fields) > 3 and fields[3].isdecimal():
            yield int(fields[3])


def _step_gone_on_from(dropped: Path) -> int | None:
    """Return the last step before rows that were dropped: 0 where a start began from step 0.

    Each start appends the rows after the step that it loaded, in their order.
    """
    before, gone_on = None, 0
    for step in _steps(dropped):
        if before is None or step < before:
            gone_on = max(gone_on, step - 1)
        before = step
    return gone_on


def _step_beyond_a_save(run: Path) -> int | None:
    """Return the newest step in the metrics, if a save must have been complete before it.

    No step is made while a synchronous save is written. Beside asynchronous saves, steps continue
    until the third save would begin.
    """
    recipe = _block(run / "resolved.yaml")
    interval = _number(recipe.get("save-interval"))
    if not interval:
        return None
    newest = max(_steps(run / "metrics.jsonl"), default=0)
    return newest if newest > interval * (3 if recipe.get("async-save") else 1) else None


# --- reading what may be damaged ------------------------------------------------------------------


def _block(path: Path) -> dict[str, Any]:
    """The block of a JSON or YAML file; an empty one where there is none to be read."""
    try:
        return (read_yaml if path.suffix == ".yaml" else read_json)(path) or {}
    except Damaged:
        return {}


def _blocks(values: Any) -> list[dict[str, Any]]:
    return (
        [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
    )


def _steps(metrics: Path) -> Iterator[int]:
    for line in _lines(metrics):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = _number(row.get("step")) if isinstance(row, dict) else None
        if step is not None:
            yield step


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from file
    except OSError:
        return


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
