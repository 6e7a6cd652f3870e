"""``metrics.jsonl``: the names of its losses, how it is read, and how it is cut on resume."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tst_megatron.files import write_beside

BAG_LOSS = "bag loss"
"""Mean loss of the superposition phase over latent positions, in nats: the multi-hot cross-entropy
of the next bag, or with ``tst.targets: tokens`` the cross-entropy of its first token."""
LM_LOSS = "lm loss"
"""Mean next-token cross-entropy, in nats; Megatron's name."""
LOSS_NAMES = (BAG_LOSS, LM_LOSS)
"""Two curves and never one: a bag loss cannot be compared with a next-token loss."""
VALIDATION_LOSS = "lm loss validation"
"""Mean next-token cross-entropy on the held-out positions, in nats; Megatron's name."""
TEST_LOSS = "lm loss test"
"""The same on the test text, once after the last step."""

MOST_BYTES_FROM_END = 8 << 20
"""About ten thousand steps."""
_BLOCK_BYTES = 1 << 16


def read_metrics(path: Path, *, event: str = "step") -> list[dict[str, Any]]:
    """Rows of one kind (``step``, ``validation``, ``test``) of a ``metrics.jsonl``, in order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [row for row in rows if row["event"] == event]


def read_newest(
    path: Path, *, num_steps: int, most_bytes: int = MOST_BYTES_FROM_END
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The newest rows of steps and the newest validation, read from the end of a ``metrics.jsonl``.

    Args:
        path: may be missing, may be written to at the moment, may end in a torn line.
        num_steps: how many rows of steps are wanted.
        most_bytes: where the search for a validation ends.

    Returns:
        The rows of steps, in order; the row of the validation, or None if none was found.
    """
    steps: list[dict[str, Any]] = []
    validation = None
    for line in _lines_from_end(path, most_bytes) if path.exists() else ():
        is_wanted = len(steps) < num_steps or b'"validation"' in line
        if not is_wanted or not _is_up_to(line, sys.maxsize):
            continue
        row = json.loads(line)
        if row.get("event") == "step" and len(steps) < num_steps:
            steps.append(row)
        elif row.get("event") == "validation":
            validation = validation or row
        if validation and len(steps) == num_steps:
            break
    return steps[::-1], validation


def _lines_from_end(path: Path, most_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        end_of_search = max(0, start - most_bytes)
        rest = b""
        while start > end_of_search:
            size = min(_BLOCK_BYTES, start - end_of_search)
            start -= size
            file.seek(start)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from reversed(lines)
        if start == 0:
            yield rest


def events_at(path: Path, step: int) -> set[str]:
    """Which kinds of rows a ``metrics.jsonl`` has of a step; a torn line is none."""
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {
        json.loads(line).get("event")
        for line in lines
        if _is_up_to(line, step) and not _is_up_to(line, step - 1)
    }


def newest_step(path: Path) -> int:
    """The newest optimizer step that a ``metrics.jsonl`` has a row of, or 0."""
    steps, _ = read_newest(path, num_steps=1)
    return int(steps[-1]["step"]) if steps else 0


def drop_lines_after(path: Path, step: int) -> None:
    """Move the lines after a step to ``metrics.dropped.jsonl``, so that each step stands once.

    A torn last line, from a killed process, is moved too.
    """
    if not path.exists():
        return
    kept: list[str] = []
    dropped: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        (kept if _is_up_to(line, step) else dropped).append(line)
    if dropped:
        with path.with_name("metrics.dropped.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in dropped)
    text = "".join(f"{line}\n" for line in kept)
    if text != path.read_text(encoding="utf-8"):
        write_beside(path, text)


def _is_up_to(line: str | bytes, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False
