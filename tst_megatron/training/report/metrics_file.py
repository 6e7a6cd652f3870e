"""Read ``metrics.jsonl``, and cut it on resume; here are names of its numbers too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tst_megatron.system.files import write_bytes_beside
from tst_megatron.system.records import Damaged, block_of, open_bytes, parse_json, read_bytes

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

NEXT_TOKEN = "next-token loss"
SAID = {
    BAG_LOSS: BAG_LOSS,
    LM_LOSS: NEXT_TOKEN,
    VALIDATION_LOSS: "validation loss",
    TEST_LOSS: "test loss",
}
"""What a person reads for each; the records keep the names that their readers know."""

MFU = "MFU"
"""The share (0-1) of the device's dense BF16 peak that the model's own FLOPs reach, as Megatron
counts them, in every precision. Absent where the peak is not known; ``facts.json`` has the peak."""

PEAK_MEMORY = "peak memory bytes"
"""The most memory that this rank, the last one, has held since this start: of a GPU, what torch's
tensors took on the device; on the CPU host, the resident memory of the whole process. Other ranks
may hold more: with pipeline parallelism, the first stage keeps the most micro-batches."""

DROPPED = "metrics.dropped.jsonl"
"""Beside it: what a rollback took out of it, and what was no row."""

EVALUATIONS = "evaluations"
"""A folder beside it, with the loss of each held-out sequence (``evaluations.py``); runs of earlier
versions have none."""

MOST_BYTES_FROM_END = 8 << 20
"""About ten thousand steps."""
_BLOCK_BYTES = 1 << 16


_ROW = {"event": str, "step": int}


def read_metrics(path: Path, *, event: str = "step") -> list[dict[str, Any]]:
    """Rows of one kind (``step``, ``validation``, ``test``) of a ``metrics.jsonl``, in order.

    Raises:
        FileNotFoundError: it is not there.
        Damaged: it cannot be read. A line that holds no row is left out.
    """
    text = read_bytes(path)
    if text is None:
        raise FileNotFoundError(f"{path}: there is no such file")
    rows = (row_of(line) for line in text.split(b"\n"))
    return [row for row in rows if row is not None and row["event"] == event]


def row_of(line: bytes) -> dict[str, Any] | None:
    """Return what a line says; None for a line that a kill has torn, or that is damaged."""
    try:
        row = block_of(parse_json(line), _ROW)
    except Damaged:
        return None
    return row if row["step"] >= 0 else None


def read_newest(
    path: Path, *, num_steps: int, last_step: int, most_bytes: int = MOST_BYTES_FROM_END
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Read the newest rows of steps and the newest validation, from the end of a ``metrics.jsonl``.

    Args:
        path: may be missing, may be written to at the moment, may end in a torn line.
        num_steps: how many rows of steps are wanted.
        last_step: of the run; what says a later one is no row of it.
        most_bytes: where the search for a validation ends.

    Returns:
        The rows of steps, in order; the row of the validation, or None if none was found.

    Raises:
        Damaged: it cannot be read.
    """
    steps: list[dict[str, Any]] = []
    validation = None
    for line in _lines_from_end(path, most_bytes):
        is_wanted = len(steps) < num_steps or b'"validation"' in line
        row = row_of(line) if is_wanted else None
        if row is None or row["step"] > last_step:
            continue
        if row["event"] == "step" and len(steps) < num_steps:
            steps.append(row)
        elif row["event"] == "validation":
            validation = validation or row
        if validation and len(steps) == num_steps:
            break
    return sorted(steps, key=lambda row: int(row["step"])), validation


def _lines_from_end(path: Path, most_bytes: int) -> Iterator[bytes]:
    file = open_bytes(path)
    if file is None:
        return
    with file:
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
    """List the kinds of rows that a ``metrics.jsonl`` has of a step; a torn line is none.

    Raises:
        Damaged: it cannot be read.
    """
    rows = (row_of(line) for line in (read_bytes(path) or b"").split(b"\n"))
    return {row["event"] for row in rows if row is not None and row["step"] == step}


def newest_step(path: Path, *, last_step: int) -> int:
    """Return the newest optimizer step that a ``metrics.jsonl`` has a row of, or 0.

    Args:
        path: as for ``read_newest``; one that cannot be read is of no step.
        last_step: of the run.
    """
    try:
        steps, _ = read_newest(path, num_steps=1, last_step=last_step)
    except Damaged:
        return 0
    return int(steps[-1]["step"]) if steps else 0


def lines_until(content: bytes, step: int) -> tuple[list[bytes], list[bytes], int]:
    """Divide the lines of a ``metrics.jsonl`` into those up to a step and all others.

    Args:
        content: of the file.
        step: the last one whose rows are wanted.

    Returns:
        The rows up to the step, in the order of their steps, each of them once; the other lines, in
        their order: rows of later steps, second rows, and what is no row, such as a torn last line
        of a killed process; and how many held no row or a second one.
    """
    kept: list[tuple[int, bytes]] = []
    others: list[bytes] = []
    seen: set[tuple[str, int]] = set()
    num_damaged = 0
    for line in content.removesuffix(b"\n").split(b"\n") if content else ():
        row = row_of(line)
        name = (row["event"], row["step"]) if row is not None else None
        num_damaged += name is None or name in seen
        if name is None or name in seen or name[1] > step:
            others.append(line)
        else:
            kept.append((name[1], line))
            seen.add(name)
    kept.sort(key=lambda each: each[0])
    return [line for _, line in kept], others, num_damaged


def drop_lines_after(path: Path, step: int) -> int:
    """Move the lines after a step to ``metrics.dropped.jsonl``, so that each step stands once.

    Lines that hold no row are moved too, and second rows of a step (``lines_until``).

    Returns:
        How many lines held no row, or a second one.

    Raises:
        Damaged: it cannot be read.
    """
    before = read_bytes(path)
    if before is None:
        return 0
    kept, dropped, num_damaged = lines_until(before, step)
    if dropped:
        with path.with_name(DROPPED).open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            # A line that a kill has torn must not take the next one along.
            if file.read() not in (b"", b"\n"):
                file.write(b"\n")
            file.writelines(line + b"\n" for line in dropped)
    after = b"".join(line + b"\n" for line in kept)
    if after != before:
        write_bytes_beside(path, after)
    return num_damaged
