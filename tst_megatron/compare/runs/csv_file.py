"""Read a CSV file of another tracker as one run: Weights & Biases, MLflow, or made by hand."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tst_megatron.compare.results import Curve, Floats, RecordedRun
from tst_megatron.compare.runs.finite import curve, finite_validation
from tst_megatron.training.report.metrics_file import LM_LOSS

STEP, VALIDATION, TRAINING, TOKENS, FLOPS, SECONDS = (
    "step",
    "validation loss",
    "training loss",
    "raw tokens",
    "FLOPs",
    "seconds",
)
COLUMNS = {
    STEP: ("step", "iteration", "iter", "global step", "trainer global step", "train step"),
    VALIDATION: (
        "lm loss validation",
        "validation loss",
        "val loss",
        "valid loss",
        "eval loss",
        "loss validation",
        "loss val",
        "loss valid",
        "loss eval",
    ),
    TRAINING: ("lm loss", "training loss", "train loss", "loss train", "loss"),
    TOKENS: (
        "raw tokens",
        "tokens",
        "num tokens",
        "consumed tokens",
        "tokens seen",
        "total tokens",
    ),
    FLOPS: ("flops", "total flops"),
    SECONDS: ("runtime", "seconds", "elapsed seconds", "relative time process"),
}
"""What is read, each with the names that its column may have, in small letters and without signs:
``val/loss``, ``val_loss`` and ``Val loss`` are one. Tokens, FLOPs and seconds are totals."""

MOST_POINTS = 4000
_LAST_STEP = 1e12

_Columns = dict[str, dict[int, float]]


def read_csv(path: Path, notes: list[str]) -> RecordedRun:
    """Return the run that a CSV file tells of; its ``arm`` is empty.

    Args:
        path: of a file with one row for each step, or one for each value (MLflow's ``key``,
            ``step``, ``value``).
        notes: is told in a sentence what is not known.

    Raises:
        ValueError: it holds no such columns; the message says which it holds.
    """
    columns = _read(path)
    if not columns.get(VALIDATION):
        raise ValueError(f"{path}: has no value in its column of the validation loss")
    facts: dict[str, Any] = {}
    validation = finite_validation(path, columns[VALIDATION], facts, notes)
    notes.append(f"{path}: is a CSV file, which does not say what the run was made with")
    training = curve(columns.get(TRAINING, {}))
    distance = max(1, len(training.steps) // MOST_POINTS)
    training = Curve(steps=training.steps[::distance], values=training.values[::distance])
    tokens, flops, seconds = (
        _total(columns, name, validation) for name in (TOKENS, FLOPS, SECONDS)
    )
    last_step = max(max(values) for values in columns.values() if values)
    numbers = {}
    if seconds is not None:
        numbers["own hours"] = float(seconds[-1]) / 3600
    if tokens is not None and seconds is not None and seconds[-1] > 0:
        numbers["raw tokens per second"] = float(tokens[-1] / seconds[-1])
    name = path.stem
    seed = re.search(r"seed[-_ =]?(\d+)", name, re.IGNORECASE)
    return RecordedRun(
        name=name,
        path=path,
        kind="CSV",
        arm="",
        seed=int(seed[1]) if seed else None,
        num_steps=last_step,
        last_step=last_step,
        phases=((1, last_step),),
        trunk=None,
        training={LM_LOSS: training} if len(training.steps) else {},
        validation=validation,
        block_files={},
        raw_tokens=tokens,
        flops=flops,
        hours=None if seconds is None else seconds / 3600,
        numbers=numbers,
        device="unknown",
        facts=facts,
    )


def _read(path: Path) -> _Columns:
    """Return the columns that are known, each as value by step."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=head.count)
            rows = csv.reader(file, delimiter=delimiter)
            names = next(rows, [])
            long = [_plain(name) for name in names]
            if "value" in long and {"key", "metric"} & set(long):
                return _of_values(path, long, rows)
            return _of_steps(path, names, rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: is no CSV file ({error})") from error


def _of_steps(path: Path, names: Sequence[str], rows: Iterator[list[str]]) -> _Columns:
    places = {meaning: _place(path, meaning, names) for meaning in COLUMNS}
    missing = [meaning for meaning in (STEP, VALIDATION) if places[meaning] is None]
    if missing:
        raise ValueError(
            f"{path}: has no column for the {' and the '.join(missing)}. Its columns are "
            f"{', '.join(names) or 'none'}; a step is named {_listed(STEP)}, and a validation loss "
            f"{_listed(VALIDATION)}"
        )
    wanted = {m: place for m, place in places.items() if place is not None and m != STEP}
    at = places[STEP]
    assert at is not None
    found: _Columns = {meaning: {} for meaning in wanted}
    for row in rows:
        step = _number(row, at)
        if step is None or not 0 <= step < _LAST_STEP:
            continue
        for meaning, place in wanted.items():
            if (value := _number(row, place)) is not None:
                found[meaning][int(step)] = value
    return found


def _of_values(path: Path, names: Sequence[str], rows: Iterator[list[str]]) -> _Columns:
    """Read a file that has a row for each value, as MLflow writes."""
    key = names.index("key" if "key" in names else "metric")
    if STEP not in names:
        raise ValueError(f"{path}: has no column for the step. Its columns are {', '.join(names)}")
    step_at, value_at = names.index(STEP), names.index("value")
    found: _Columns = {}
    seen = set()
    for row in rows:
        step, value = _number(row, step_at), _number(row, value_at)
        if step is None or value is None or not 0 <= step < _LAST_STEP or len(row) <= key:
            continue
        seen.add(row[key])
        meaning = next((m for m in COLUMNS if _plain(row[key]) in COLUMNS[m]), None)
        if meaning is not None:
            found.setdefault(meaning, {})[int(step)] = value
    if VALIDATION not in found:
        raise ValueError(
            f"{path}: has no values of the validation loss. Its keys are "
            f"{', '.join(sorted(seen)) or 'none'}; a validation loss is named {_listed(VALIDATION)}"
        )
    return found


def _place(path: Path, meaning: str, names: Sequence[str]) -> int | None:
    """Return which column has a meaning: one of its names, or such a name after a run's name."""
    plain = [_plain(name) for name in names]
    for known in COLUMNS[meaning]:
        if known in plain:
            return plain.index(known)
    # Weights & Biases writes "RUN - val/loss" if a chart is exported. Of runs that it has grouped
    # there are also "RUN - val/loss__MIN" and "__MAX", which are none of the names.
    after = [
        place
        for place, name in enumerate(names)
        if " - " in name and _plain(name.rpartition(" - ")[2]) in COLUMNS[meaning]
    ]
    if len(after) > 1:
        listed = ", ".join(names[place] for place in after)
        raise ValueError(
            f"{path}: has {len(after)} columns for the {meaning} ({listed}). Give each run a file "
            "of its own"
        )
    return after[0] if after else None


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def _listed(meaning: str) -> str:
    return " or ".join(repr(name) for name in COLUMNS[meaning])


def _number(row: Sequence[str], place: int) -> float | None:
    try:
        return float(row[place])
    except (IndexError, ValueError):
        return None


def _total(columns: _Columns, name: str, validation: Curve) -> Floats | None:
    """Return a total at each evaluation, between its recorded values on a straight line."""
    total = curve(columns.get(name, {}))
    if not len(total.steps):
        return None
    first = () if total.steps[0] == 0 else (0,)
    return np.interp(
        validation.steps, np.r_[first, total.steps], np.r_[np.zeros(len(first)), total.values]
    )
