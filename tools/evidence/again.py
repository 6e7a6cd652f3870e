"""Train a recorded run anew, alone and from its first step, and compare every digit."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from rich.console import Console

from evidence.plan import WORK, PlanError
from evidence.runs import RECIPE, RESULTS
from tst_megatron.sweep.jobs import COMMAND
from tst_megatron.training.report.metrics_file import read_metrics


def train_again(name: str, console: Console) -> int:
    """Train a run from the recipe of its record, and return 1 if a number differs.

    Args:
        name: ``SWEEP/RUN``.
        console: where it is said.

    Raises:
        PlanError: there is no such record.
    """
    record = RESULTS / name
    recipe = record / RECIPE
    if not recipe.exists():
        raise PlanError(f"--again {name}: {RESULTS} has no record of that name. --list shows them")
    folder = WORK / "again" / name
    subprocess.run(
        [*COMMAND, "train", str(recipe), "--run-folder", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    found, kept = (_bits(path / "metrics.jsonl") for path in (folder, record))
    differing = [key for key in kept if found.get(key) != kept[key]]
    console.print(
        f"{name}: {len(kept):,} numbers compared, {len(differing)} differ", highlight=False
    )
    for key in differing[:5]:
        console.print(f"  {key}", highlight=False)
    return 1 if differing else 0


def _bits(path: Path) -> dict[tuple[str, int, str], bytes]:
    """Return every loss and gradient norm by (event, step, name)."""
    return {
        (row["event"], row["step"], name): struct.pack("<d", value)
        for event in ("step", "validation")
        for row in read_metrics(path, event=event)
        for name, value in row.items()
        if isinstance(value, float) and ("loss" in name or name == "grad-norm")
    }
