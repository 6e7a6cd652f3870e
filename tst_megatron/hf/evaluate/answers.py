"""Keep which questions a model has answered right, so that two models are compared by question.

``NAME.answers.json`` stands beside the result ``NAME.json``. It has for each task lm-eval's hash of
its questions, and for each metric one character per question, in lm-eval's order: ``1`` is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tst_megatron.system.files import write_beside
from tst_megatron.system.records import Damaged, block_of, read_json

FORMAT = 1
_FILTER = "none"
"""lm-eval's name for answers that were taken as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a model has answered to the questions of one task."""

    hash: str
    """Equal for the same questions, asked in the same way."""
    right: Mapping[str, str]
    """Metric -> one ``0`` or ``1`` for each question."""


def answers_file(result: Path) -> Path:
    """Return where the answers of a result are kept."""
    return result.with_name(f"{result.name.removesuffix('.json')}.answers.json")


def write_answers(result: Path, raw: Any, hashes: Mapping[str, str | None]) -> None:
    """Write the answers beside a result.

    Args:
        result: its file.
        raw: what lm-eval's ``evaluate`` returned, samples included.
        hashes: of the tasks; groups have none.
    """
    tasks = {
        name: {"hash": hashes[name], "right": _right(samples)}
        for name, samples in raw["samples"].items()
        if hashes.get(name)
    }
    text = json.dumps({"format": FORMAT, "tasks": tasks}, indent=2)
    write_beside(answers_file(result), text + "\n")


def _right(samples: list[dict[str, Any]]) -> dict[str, str]:
    """Return the metrics that are right or wrong for each question."""
    asked = [sample for sample in samples if sample["filter"] == _FILTER]
    metrics = dict.fromkeys(metric for sample in asked for metric in sample["metrics"])
    found = {}
    for metric in metrics:
        values = [sample.get(metric) for sample in asked]
        if all(value in (0, 1) for value in values):
            found[metric] = "".join("1" if value else "0" for value in values)
    return found


def read_answers(result: Path) -> dict[str, Answers] | None:
    """Return the answers beside a result, task -> answers; None where none were kept.

    Raises:
        Damaged: the file is there, and holds something else.
    """
    said = read_json(answers_file(result), {"format": int, "tasks": dict})
    if said is None:
        return None
    if said["format"] != FORMAT:
        raise Damaged(f"has the format {said['format']}, and this version reads {FORMAT}")
    found = {}
    for name, task in said["tasks"].items():
        block = block_of(task, {"hash": str, "right": dict})
        right = block["right"]
        if not all(isinstance(each, str) and set(each) <= {"0", "1"} for each in right.values()):
            raise Damaged(f"has answers of {name!r} that are none")
        found[name] = Answers(hash=block["hash"], right=right)
    return found
