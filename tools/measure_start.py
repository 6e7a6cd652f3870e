"""Time `check` in this checkout beside another one, in turns.

    python tools/measure_start.py RECIPE --beside CHECKOUT

The median of a recipe with a typo, and of a full check. Both checkouts run in this environment.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
CASES = {"with a typo": ["num-layerz=2"], "in full": []}


def main() -> None:
    """Print a table: what is checked, by which checkout, seconds and CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--beside", type=Path, help="a checkout of another commit")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    checkouts = [HERE] if given.beside is None else [given.beside.resolve(), HERE]
    table = Table("check", "checkout", "seconds, median", "CPU seconds, median")
    for name, overrides in CASES.items():
        seconds: dict[Path, list[tuple[float, float]]] = {path: [] for path in checkouts}
        # Once before, so that every file is in memory and compiled.
        for _ in range(given.rounds + 1):
            for path in checkouts:
                seconds[path].append(_check(path, given.recipe.resolve(), overrides))
        for path, measured in seconds.items():
            wall, cpu = zip(*measured[1:], strict=True)
            row = (f"{statistics.median(wall):.2f}", f"{statistics.median(cpu):.2f}")
            table.add_row(name, _name(path), *row)
    Console().print(table)


def _check(checkout: Path, recipe: Path, overrides: list[str]) -> tuple[float, float]:
    """Seconds and CPU seconds of one check, whatever it says."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    # Without compiled files Python compiles all of Megatron each time.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, start = _cpu_of_children(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tst_megatron", "check", recipe.name, *overrides],
        cwd=recipe.parent,
        env=environment,
        capture_output=True,
        check=False,
    )
    return time.perf_counter() - start, _cpu_of_children() - before


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _name(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
