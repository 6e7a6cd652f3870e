"""``metrics.jsonl``: the names of its losses, how it is read, and how it is cut on resume."""

from __future__ import annotations

import json
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


def read_metrics(path: Path, *, event: str = "step") -> list[dict[str, Any]]:
    """Rows of one kind (``step``, ``validation``, ``test``) of a ``metrics.jsonl``, in order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [row for row in rows if row["event"] == event]


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


def _is_up_to(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (json.JSONDecodeError, KeyError, TypeError):
        return False
