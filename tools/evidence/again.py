"""Train a recorded run anew, alone and from its first step, and compare every digit."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from rich.console import Console

from evidence.plan import WORK, Branches, Entry, PlanError
from evidence.prepared import prepared
from evidence.runs import RECIPE, branch_words, record_of, train_words
from tst_megatron.sweep.jobs import COMMAND
from tst_megatron.training.report.metrics_file import read_metrics


def train_again(name: str, sweeps: list[Entry], console: Console) -> int:
    """Train a run from the recipe of its record, and return 1 if a number differs.

    Args:
        name: ``SWEEP/RUN``.
        sweeps: of the plan.
        console: where it is said.

    Raises:
        PlanError: there is no such record, or a command failed.
    """
    sweep_name, _, run = name.partition("/")
    sweep = next((each for each in sweeps if each.name == sweep_name), None)
    record = record_of(name)
    if sweep is None or not (record / RECIPE).exists():
        raise PlanError(f"--again {name}: there is no record {record}. --list shows them")
    prepared(sweep.text, console)
    folder = WORK / "again" / name
    for words in _commands(sweep, run, folder):
        done = subprocess.run(
            [*COMMAND, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        if done.returncode:
            raise PlanError(f"--again {name}: {words[0]} ended with {done.returncode}")
    found, kept = (_bits(path / "metrics.jsonl") for path in (folder, record))
    differing = [key for key in kept if found.get(key) != kept[key]]
    console.print(
        f"{name}: {len(kept):,} numbers compared, {len(differing)} differ", highlight=False
    )
    for key in differing[:5]:
        console.print(f"  {key}", highlight=False)
    return 1 if differing or not kept else 0


def _commands(sweep: Entry, run: str, folder: Path) -> list[list[str]]:
    """Return what trains a run: its recipe alone, or its trunk and the branch."""
    train = train_words(record_of(f"{sweep.name}/{run}") / RECIPE, folder)
    if not isinstance(sweep, Branches):
        return [train]
    trunk = WORK / "again" / sweep.trunk
    commands = [train_words(record_of(sweep.trunk) / RECIPE, trunk)]
    if not folder.exists():
        commands.append(branch_words(sweep, run, trunk, folder))
    return [*commands, train]


def _bits(path: Path) -> dict[tuple[str, int, str], bytes]:
    """Return every loss and gradient norm by (event, step, name)."""
    return {
        (row["event"], row["step"], name): struct.pack("<d", value)
        for event in ("step", "validation")
        for row in read_metrics(path, event=event)
        for name, value in row.items()
        if isinstance(value, float) and ("loss" in name or name == "grad-norm")
    }
