"""Write the tables of the page, in Markdown, from records alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from evidence.pairs import MapPair, records
from evidence.plan import ROOT
from tst_megatron.compare.comparison import compare_runs
from tst_megatron.compare.runs.open_runs import open_runs

DOCS = ROOT / "docs"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def signed(value: float) -> str:
    """Spell a gap in nats."""
    return f"{value:+.3f}".replace("-", "\u2212")


def interval(value: float, low: float, high: float) -> str:
    """Spell a gap with its interval."""
    return f"{signed(value)} ({signed(low)} to {signed(high)})"


def link(record: Path) -> str:
    """Return a link from the page to a record."""
    sweep = record.parent.name
    return f"[{sweep}]({os.path.relpath(record, DOCS)})"


MAP_HEAD = (
    *("text", "width", "positions a step", "steps", "lr", "its rank", "K", "r", "seeds"),
    *("positions per parameter", "slope", "price", "taught", "baseline", "TST"),
    *("gap (95% interval)", "record"),
)


def map_table(pairs: Sequence[MapPair]) -> str:
    """Return a row for each pair."""
    return table(MAP_HEAD, (_map_row(pair) for pair in pairs))


def _map_row(pair: MapPair) -> list[str]:
    keys = pair.keys
    (text,) = (Path(path).name for path in keys["data"])
    setup = [
        f"{name} {keys[key]}"
        for key, name, usual in (
            ("init-method-std", "initialisation", 0.02),
            ("rotary-base", "rotary base", 500000),
            ("num-experts", "experts", None),
        )
        if keys.get(key) != usual and "num-experts" not in keys
    ]
    width = str(keys["hidden-size"]) + (" MoE" if "num-experts" in keys else "")
    gap = interval(pair.gap, pair.low, pair.high)
    return [
        ", ".join([text, *setup]),
        width,
        f"{int(keys['seq-length']) * int(keys['global-batch-size']):,}",
        f"{int(keys['train-iters']):,}",
        f"{float(keys['lr']):g}",
        f"{pair.rank_of_rate} of {pair.num_rates}",
        str(pair.bag_size),
        f"{pair.fraction:.2f}",
        str(len(pair.runs)),
        f"{pair.positions_per_parameter:.0f}",
        f"{pair.slope:.2f}",
        f"{'' if pair.recovery_loss else '~'}{pair.price:.3f}",
        "" if pair.taught is None else signed(pair.taught),
        f"{pair.baseline_loss:.3f}",
        f"{pair.loss:.3f}",
        f"**{gap}**" if pair.low > 0 else gap,
        link(pair.runs[0]),
    ]


BEST_HEAD = (
    *("steps", "baseline's best lr", "baseline", "TST there", "gap there (95% interval)"),
    *("TST's best lr", "TST", "gap of best to best (95% interval)"),
)
FEWEST_RATES = 3


def best_table(pairs: Sequence[MapPair]) -> str:
    """Return a row for each length at which both arms were trained at several learning rates."""
    groups: dict[tuple[int, int, float], list[MapPair]] = {}
    for pair in pairs:
        if pair.num_rates >= FEWEST_RATES:
            cell = (pair.positions, pair.bag_size, pair.fraction)
            groups.setdefault(cell, []).append(pair)
    cells = [found for found in groups.values() if len(found) >= FEWEST_RATES]
    return table(BEST_HEAD, (_best_row(found) for found in cells))


def _best_row(found: Sequence[MapPair]) -> list[str]:
    there = min(found, key=lambda pair: pair.baseline_loss)
    best = min(found, key=lambda pair: pair.loss)
    comparison = compare_runs([*there.baselines, *best.runs])
    (gap,) = [pair.gap for pair in comparison.pairs]
    assert gap is not None, "two recorded runs on one held-out text have a gap"
    return [
        f"{int(there.keys['train-iters']):,}",
        f"{float(there.keys['lr']):g}",
        f"{there.baseline_loss:.3f}",
        f"{there.loss:.3f}",
        interval(there.gap, there.low, there.high),
        f"{float(best.keys['lr']):g}",
        f"{best.loss:.3f}",
        interval(gap.value, gap.low, gap.high),
    ]


def cost_table() -> str:
    """Return what each sweep took: runs, steps of their own, and hours of one core."""
    by_sweep: dict[str, list[Path]] = {}
    for path in records():
        by_sweep.setdefault(path.parent.name, []).append(path)
    rows, total = [], 0.0
    for sweep, paths in by_sweep.items():
        runs, _ = open_runs(paths)
        hours = sum(run.numbers["own hours"] for run in runs)
        steps = sum(run.num_steps - (run.trunk[1] if run.trunk else 0) for run in runs)
        total += hours
        rows.append([f"`make evidence ONLY={sweep}`", str(len(runs)), f"{steps:,}", f"{hours:.2f}"])
    rows.append(["all", str(len(records())), "", f"{total:.1f}"])
    return table(("command", "runs", "steps trained", "hours of one core"), rows)
