"""Write the tables of what happens to weights, moments and gradients at the switch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evidence.pairs import records
from evidence.records import STATES
from evidence.report.tables import table
from tst_megatron.training.report.metrics_file import read_metrics
from tst_megatron.training.report.recorded_schedule import recorded_schedule

SWEEPS = {"switch": "dense", "switch-moe": "Qwen3-MoE"}
NUM_STEPS_AFTER = 100
"""Steps from the switch to the checkpoint that is compared: saves are so far apart."""
NUM_BEFORE = 200
"""Steps before the switch over which a noisy number is averaged."""
METRICS = ("grad-norm", "load_balancing_loss")

HEAD = (
    *("parameters", "size before", f"size {NUM_STEPS_AFTER} steps later", "moved in between"),
    *("baseline moved", "gradient before", "gradient later", "baseline's gradient"),
)
METRICS_HEAD = ("model", "number", "before", "first step", "10th", "50th", "baseline then")


def switch_tables() -> str:
    """Return the table of weights and moments of each model, then that of gradients."""
    found = {name: _records(sweep) for sweep, name in SWEEPS.items()}
    found = {name: both for name, both in found.items() if len(both) == 2}
    if not found:
        return "None of these runs was trained yet.\n"
    parts = [
        f"**{name}**\n\n{table(HEAD, _state_rows(both['baseline'], both['tst']))}"
        for name, both in found.items()
    ]
    rows = [row for name, both in found.items() for row in _metric_rows(name, both)]
    return "\n".join([*parts, table(METRICS_HEAD, rows)])


def _records(sweep: str) -> dict[str, Path]:
    return {path.name.split("_")[0]: path for path in records() if path.parent.name == sweep}


def _switch(path: Path) -> int:
    schedule, _ = recorded_schedule(path / "resolved.yaml")
    return schedule.switch_step


def _state_rows(baseline: Path, tst: Path) -> Iterator[list[str]]:
    switch = _switch(tst)
    ordinary, run = (
        {(row["step"], row["parameter"]): row for row in map(json.loads, lines)}
        for lines in ((path / STATES).read_text().splitlines() for path in (baseline, tst))
    )
    for step, name in run:
        if step != switch:
            continue
        before, after = run[switch, name], run[switch + NUM_STEPS_AFTER, name]
        other = ordinary[switch + NUM_STEPS_AFTER, name]
        yield [
            f"`{_short(name)}`",
            *(f"{row['rms']:.3f}" for row in (before, after)),
            *(f"{row['moved']:.3f}" for row in (after, other)),
            *(f"{row['second'] * 1000:.2f}" for row in (before, after, other)),
        ]


def _short(name: str) -> str:
    return name.removeprefix("decoder.").removeprefix("layers.").removesuffix(".weight")


def _metric_rows(model: str, both: dict[str, Path]) -> Iterator[list[str]]:
    switch = _switch(both["tst"])
    rows = {name: read_metrics(path / "metrics.jsonl", event="step") for name, path in both.items()}
    for metric in METRICS:
        if metric not in rows["tst"][0]:
            continue
        values = {row["step"]: row[metric] for row in rows["tst"]}
        yield [
            model,
            metric,
            f"{_mean(rows['tst'], metric, switch - NUM_BEFORE + 1, switch):.3f}",
            *(f"{values[switch + number]:.3f}" for number in (1, 10, 50)),
            f"{_mean(rows['baseline'], metric, switch + 1, switch + NUM_BEFORE):.3f}",
        ]


def _mean(rows: Sequence[dict[str, Any]], metric: str, first: int, last: int) -> float:
    return statistics.fmean(row[metric] for row in rows if first <= row["step"] <= last)
