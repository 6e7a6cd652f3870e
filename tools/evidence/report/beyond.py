"""Write the table of what the paper did not try: other schedules, other rates in superposition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from evidence.pairs import records
from evidence.records import STEPS_BETWEEN_ROWS
from evidence.report.tables import interval, link, table
from evidence.runs import RESULTS
from tst_megatron.compare.comparison import compare_runs
from tst_megatron.training.report.metrics_file import read_metrics
from tst_megatron.training.report.recorded_schedule import recorded_schedule

HEAD = (
    *("in superposition", "steps", "lr", "loss", "gap to the baseline", "gap to the paper's"),
    *("spike", "record"),
)

_LR = ("lr-baseline/lr-{}_baseline_seed-1234", "lr-tst/lr-{}_tst_seed-1234")
_SETUP = "setup/init-method-std-0.02_rotary-base-500000_{}_seed-1234"
_LONG, _SHORT = (
    tuple(name.format(rate) for name in _LR)
    for rate in ("0.002_train-iters-8000", "0.004_train-iters-2000")
)
PAPERS = {
    "schedules": tuple(_SETUP.format(arm) for arm in ("baseline", "tst")),
    "lr-low-then-best": _LONG,
    "lr-high-then-best": _LONG,
    "schedules-where-it-loses": _SHORT,
}
"""By sweep: the records of the baseline and of the paper's schedule for its runs."""


def beyond_table() -> str:
    """Return a row for the paper's schedule and for each other one that was recorded."""
    rows: list[list[str]] = []
    for names in dict.fromkeys(PAPERS.values()):
        found = [path for path in records() if PAPERS.get(path.parent.name) == names]
        rows += _rows(names, found) if found else []
    return table(HEAD, rows) if rows else "None of these runs was trained yet.\n"


def _rows(names: Sequence[str], found: list[Path]) -> Iterator[list[str]]:
    baseline, papers = (RESULTS / name for name in names)
    for path in (papers, *found):
        comparison = compare_runs([baseline, path])
        arm, pairs = comparison.arms[1], list(comparison.pairs)
        if path != papers:
            pairs += compare_runs([papers, path], baseline=papers.name).pairs
        gaps = [pair.gap for pair in pairs]
        said = [interval(gap.value, gap.low, gap.high) if gap else "" for gap in gaps]
        yield [
            _superposition(path),
            f"{arm.runs[0].num_steps:,}",
            _rates(path),
            f"{arm.final_loss.value:.3f}",
            *(*said, "")[:2],
            f"{arm.spike.height:+.2f}" if arm.spike else "",
            link(path),
        ]


def _superposition(path: Path) -> str:
    schedule, _ = recorded_schedule(path / "resolved.yaml")
    return ", ".join(f"{phase.num_steps:,} of K={phase.bag_size}" for phase in schedule.phases[:-1])


def _rates(path: Path) -> str:
    """Return the learning rate in superposition; where recovery has another, both."""
    schedule, _ = recorded_schedule(path / "resolved.yaml")
    rows = read_metrics(path / "metrics.jsonl", event="step")
    rates = {row["step"]: f"{row['learning-rate']:g}" for row in rows}
    before, after = rates[schedule.switch_step], rates[schedule.switch_step + STEPS_BETWEEN_ROWS]
    return before if before == after else f"{before}, then {after}"
