"""Write the table of the paper's arms, each against the baseline with as many steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evidence.pairs import records
from evidence.report.tables import interval, table
from tst_megatron.compare.arms import has_superposition
from tst_megatron.compare.comparison import compare_runs
from tst_megatron.compare.results import ArmSummary, Pair

HEAD = (
    *("arm", "seeds", "steps", "raw tokens", "loss", "gap (95% interval)", "the paper"),
    *("baseline's steps for the same loss", "TST minus this (95% interval)"),
)

PAPERS = {
    "tst": "gap \u22120.075",
    "input-only": "gap \u22120.040",
    "output-only": "gap \u22120.035",
    "reset-embeddings": "2.938, and 2.676 without (3B, K=6, table 2)",
    "equal-data": "0.036 below TST (3B, table 1)",
}
"""Quoted, by arm. The gaps are read off the curves of 40,000 steps with K=4 and r=0.5
(docs/ablations.md)."""


MAIN = ("main-baseline", "main-tst", "main-halves")
"""Sweeps whose runs are compared in one table: they have one recipe but for the arm."""


def main_records() -> list[Path]:
    """Return the records of the main set."""
    return [path for path in records() if path.parent.name in MAIN]


def slot_records() -> list[Path]:
    """Return the records of the largest bag, and baselines, longer ones for equal loss."""
    slots = [path for path in records() if path.parent.name == "main-slots"]
    ordinary = ("baseline_", "longer-")
    baselines = [path for path in main_records() if path.name.startswith(ordinary)]
    return [*baselines, *slots] if slots else []


def slots_table(found: Sequence[Path]) -> str:
    """Return the rows of the arms that have as many steps as the baseline."""
    return "".join(
        line for line in arms_table(found).splitlines(keepends=True) if "| longer-" not in line
    )


def arms_table(found: Sequence[Path]) -> str:
    """Return a row for each arm of some records; the first row is the baseline."""
    if not found:
        return "None of these runs was trained yet.\n"
    comparison = compare_runs(found, baseline="baseline")
    pairs = {pair.arm: pair for pair in comparison.pairs}
    num_steps = comparison.arms[0].runs[0].num_steps
    tst = next((arm for arm in comparison.arms if arm.name == "tst"), None)
    return table(
        HEAD,
        ([*_row(arm, pairs.get(arm.name), num_steps), _ahead(tst, arm)] for arm in comparison.arms),
    )


def _ahead(tst: ArmSummary | None, arm: ArmSummary) -> str:
    """Spell by how much TST is better than another arm. Beside the baseline that is its gap."""
    if tst is None or arm.name in ("tst", "baseline"):
        return ""
    runs = [run.path for run in (*arm.runs, *tst.runs)]
    (pair,) = compare_runs(runs, baseline=arm.name).pairs
    return "" if pair.gap is None else interval(pair.gap.value, pair.gap.low, pair.gap.high)


def _row(arm: ArmSummary, pair: Pair | None, num_steps: int) -> list[str]:
    run = arm.runs[0]
    tokens = "" if run.raw_tokens is None else f"{run.raw_tokens[-1] / 1e6:.1f}M"
    gap = cost = ""
    # A longer baseline is no arm at equal FLOPs.
    if pair is not None and pair.gap is not None and run.num_steps == num_steps:
        gap = interval(pair.gap.value, pair.gap.low, pair.gap.high)
    if pair is not None and has_superposition(run) and (found := pair.equal_loss.get("steps")):
        cost = f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}) times"
    return [
        arm.name,
        str(len(arm.runs)),
        f"{run.num_steps:,}",
        tokens,
        f"{arm.final_loss.value:.3f}",
        gap,
        PAPERS.get(arm.name, ""),
        cost,
    ]
