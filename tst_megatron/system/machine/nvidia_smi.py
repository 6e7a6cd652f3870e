"""Ask ``nvidia-smi`` for the state of a node's GPUs, and find the problems in its answer."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

FIELDS = (
    *("index", "ecc.errors.uncorrected.volatile.total"),
    *("remapped_rows.pending", "remapped_rows.failure"),
    *("fabric.state", "temperature.gpu", "memory.used"),
)
PROCESS_FIELDS = ("pid", "process_name", "used_memory")

NOT_KNOWN = ("n/a", "not supported", "")
"""Answers, without brackets, of a GPU that lacks the feature. Others, such as ``[Unknown Error]``,
come from one that is broken."""

MOST_CELSIUS = 85
"""Idle GPUs are far below; at about 90 they slow down."""
MOST_USED_MEBIBYTES = 2048
"""An idle GPU holds less; more was left by a process that did not end well."""

SECONDS = 60.0
NOT_FOUND = "nvidia-smi: not found"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One question to ``nvidia-smi``: its lines, each cut into fields, or why there are none."""

    rows: tuple[tuple[str, ...], ...] = ()
    problem: str | None = None


def ask(what: str, fields: Sequence[str], *, seconds: float | None = None) -> Answer:
    """Ask ``nvidia-smi`` for fields of all GPUs or of all compute processes.

    Args:
        what: ``gpu`` or ``compute-apps``.
        fields: the names that ``nvidia-smi`` has for them.
        seconds: time after which it counts as hanging; ``SECONDS`` if None.
    """
    if not shutil.which("nvidia-smi"):
        return Answer(problem=NOT_FOUND)
    command = [
        *("nvidia-smi", f"--query-{what}={','.join(fields)}"),
        "--format=csv,noheader,nounits",
    ]
    try:
        asked = subprocess.run(
            command,
            capture_output=True,
            text=True,
            # A sick GPU's name may be any bytes.
            errors="replace",
            check=False,
            timeout=SECONDS if seconds is None else seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(problem=f"nvidia-smi: {error}")
    if asked.returncode:
        said = " ".join(f"{asked.stdout} {asked.stderr}".split())
        return Answer(problem=f"nvidia-smi: status {asked.returncode}: {said}")
    return parse(asked.stdout, fields)


def parse(text: str, fields: Sequence[str]) -> Answer:
    """Cut the answer into fields; a line of another form, such as an error, is a problem.

    Args:
        text: comma-separated, without header and units.
        fields: what was asked for. Only the second of three may hold commas itself.
    """
    rows, strange = [], []
    for line in text.splitlines():
        row = [value.strip() for value in line.split(",")]
        if len(fields) == len(PROCESS_FIELDS) and len(row) > len(fields):
            row = [row[0], ", ".join(row[1:-1]), row[-1]]
        if len(row) == len(fields):
            rows.append(tuple(row))
        elif line.strip():
            strange.append(line.strip())
    problem = f"nvidia-smi: {'; '.join(strange)}" if strange else None
    return Answer(rows=tuple(rows), problem=problem)


def gpu_problems(answer: Answer, *, is_idle: bool = True) -> list[str]:
    """List what is wrong with the GPUs of a node.

    Args:
        answer: to ``FIELDS``.
        is_idle: nothing should run there yet, so heat and used memory are problems.
    """
    problems = [answer.problem] if answer.problem else []
    for row in answer.rows:
        values = dict(zip(FIELDS, row, strict=True))
        gpu = f"GPU {values['index']}"
        for name, rule in _RULES.items():
            value = values[name].strip("[]")
            if value.lower() in NOT_KNOWN or (name in _OF_WORK and not is_idle):
                continue
            try:
                problem = rule(value)
            except ValueError:
                problem = f"{name} is {values[name]}"
            if problem:
                problems.append(f"{gpu}: {problem}")
    return problems


def count_problems(num_gpus: int, num_ranks: int) -> list[str]:
    """Check that a node has a GPU for each of its ranks."""
    if num_gpus >= num_ranks:
        return []
    return [f"nvidia-smi: {num_gpus} GPUs for the node's {num_ranks} ranks"]


def process_problems(answer: Answer) -> list[str]:
    """List processes that use the GPUs before any rank of this job does.

    Args:
        answer: to ``PROCESS_FIELDS``.
    """
    problems = [answer.problem] if answer.problem else []
    for pid, name, mebibytes in answer.rows:
        problems.append(
            f"another process on the GPUs: {name} (process {pid}, {mebibytes} MiB). End it, or "
            "leave the node out"
        )
    return problems


def _ecc(value: str) -> str | None:
    errors = int(value)
    return f"{errors} uncorrected ECC errors since its last reset. Reset it" if errors else None


def _is_yes(value: str) -> bool:
    # Versions of the driver differ in how they spell it.
    if value.lower() in ("yes", "no"):
        return value.lower() == "yes"
    return int(value) > 0


def _pending(value: str) -> str | None:
    return "a row waits to be remapped. Reset it" if _is_yes(value) else None


def _failure(value: str) -> str | None:
    return "a row could not be remapped. Replace it" if _is_yes(value) else None


def _fabric(value: str) -> str | None:
    is_ready = value.lower() == "completed"
    return None if is_ready else f"NVLink fabric is {value}, not Completed. See the fabric manager"


def _temperature(value: str) -> str | None:
    is_hot = int(value) >= MOST_CELSIUS
    return (
        f"{value} degrees Celsius before any work, {MOST_CELSIUS} is too much" if is_hot else None
    )


def _memory(value: str) -> str | None:
    is_used = int(value) > MOST_USED_MEBIBYTES
    return f"{value} MiB of its memory are in use before any work" if is_used else None


_RULES = {
    "ecc.errors.uncorrected.volatile.total": _ecc,
    "remapped_rows.pending": _pending,
    "remapped_rows.failure": _failure,
    "fabric.state": _fabric,
    "temperature.gpu": _temperature,
    "memory.used": _memory,
}

_OF_WORK = ("temperature.gpu", "memory.used")
"""Fields that any work changes."""
