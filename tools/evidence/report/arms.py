"""Write the table of the paper's arms, each against the baseline with as many steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evidence.pairs import records
from evidence.report.tables import interval, table
from tst_megatron.compare.comparison import compare_runs
from tst_megatron.compare.results import ArmSummary, Pair

HEAD = (
    *("arm", "seeds", "steps", "raw tokens", "loss", "gap (95% interval)", "the paper's gap"),
    "baseline's steps for the same loss",
)

_K4, _TABLE_2 = "ablation at 40,000 steps, K=4, r=0.5", "table 2, 3B, K=6"
PAPERS = {
    "tst": f"\u22120.075 ({_K4})",
    "input-only": f"\u22120.040 ({_K4})",
    "output-only": f"\u22120.035 ({_K4})",
    "reset-embeddings": f"2.938 against 2.676 without ({_TABLE_2})",
    "equal-data": "\u22120.036 against TST (3B)",
}
"""Quoted, by arm. The ablations are read off the paper's curves (docs/ablations.md)."""


MAIN = ("main-baseline", "main-tst", "main-halves", "main-third")
"""Sweeps whose runs are compared in one table: they have one recipe but for the arm."""


def main_records() -> list[Path]:
    """Return the records of the main set."""
    return [path for path in records() if path.parent.name in MAIN]


def arms_table(found: Sequence[Path]) -> str:
    """Return a row for each arm of some records; the first row is the baseline."""
    if not found:
        return "None of these runs was trained yet.\n"
    comparison = compare_runs(found, baseline="baseline")
    pairs = {pair.arm: pair for pair in comparison.pairs}
    return table(HEAD, (_row(arm, pairs.get(arm.name)) for arm in comparison.arms))


def _row(arm: ArmSummary, pair: Pair | None) -> list[str]:
    run = arm.runs[0]
    tokens = "" if run.raw_tokens is None else f"{run.raw_tokens[-1] / 1e6:.1f}M"
    gap = cost = ""
    if pair is not None and pair.gap is not None:
        gap = interval(pair.gap.value, pair.gap.low, pair.gap.high)
    if pair is not None and (found := pair.equal_loss.get("steps")):
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
