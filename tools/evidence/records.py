"""Keep what a finished run has recorded in a form that is small enough for the repository.

``benchmarks/results/evidence/SWEEP/RUN/`` is a run folder without its checkpoints, its logs and
most rows of its steps, so ``tst-megatron compare`` reads it as one. It keeps all evaluations of
``metrics.jsonl``, each step after a switch at which the loss falls fast, and one step in
``STEPS_BETWEEN_ROWS`` of the others. The losses by sequence are those of the last evaluation, or of
all where the plan says ``all-arrays``: the interval of a crossing needs them.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evidence.plan import ROOT, WORK
from evidence.runs import RECIPE, Run
from evidence.states import state_rows
from tst_megatron.system.files import write_beside, write_bytes_beside
from tst_megatron.system.records import read_json
from tst_megatron.training.report.evaluations import list_evaluations
from tst_megatron.training.report.metrics_file import EVALUATIONS
from tst_megatron.training.report.recorded_schedule import recorded_schedule

STEPS_BETWEEN_ROWS = 50
STEPS_AFTER_A_SWITCH = 60
FILES = ("resolved.yaml", "facts.json", "versions.json", "branch.json")
ORIGIN, STATES = "origin.json", "states.jsonl"


def write_record(run: Run) -> None:
    """Record a finished run. Its recipe is kept last, so that a record is whole or none."""
    folder, target = run.folder, run.record
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in FILES:
        if (folder / name).exists():
            write_beside(target / name, _without_place((folder / name).read_text(encoding="utf-8")))
    schedule, _ = recorded_schedule(folder / "resolved.yaml")
    switches = [phase.last_step for phase in schedule.phases[:-1]]
    with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
        write_beside(target / "metrics.jsonl", "".join(_thinned(lines, switches)))
    (target / EVALUATIONS).mkdir()
    arrays = list(list_evaluations(folder / EVALUATIONS).values())
    for path in arrays if run.sweep.all_arrays else arrays[-1:]:
        write_bytes_beside(target / EVALUATIONS / path.name, _losses_alone(path))
    if run.sweep.states:
        rows = state_rows(folder / "checkpoints")
        write_beside(target / STATES, "".join(json.dumps(row) + "\n" for row in rows))
    write_beside(target / ORIGIN, json.dumps(_origin(run.sweep.text), indent=1) + "\n")
    write_beside(target / RECIPE, _without_place(run.recipe.read_text(encoding="utf-8")))


def _origin(text: str) -> dict[str, Any]:
    """Return what decides the last digits beside the recipe: code, processor and text."""
    words = dict(re.findall(r"^(.+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    names = ("model name", "cpu family", "model", "stepping")
    kind = WORK / "text" / f"{text.rpartition('-')[0]}.json"
    return {
        "commit when it was recorded": _git("rev-parse", "HEAD"),
        "files changed since": _git("status", "--porcelain", "--", "tst_megatron").splitlines(),
        "processor": {name: words.get(name) for name in names},
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "text": read_json(kind),
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _without_place(text: str) -> str:
    """Return a text in which the files of this checkout have relative names."""
    return text.replace(f"{ROOT}/", "")


def _thinned(lines: Iterable[str], switches: list[int]) -> Iterator[str]:
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        step = row.get("step", 0)
        is_after = any(0 < step - switch <= STEPS_AFTER_A_SWITCH for switch in switches)
        if row["event"] != "step" or is_after or step % STEPS_BETWEEN_ROWS == 0 or step == 1:
            yield line


def _losses_alone(path: Path) -> bytes:
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in ("loss_sum", "num_positions")}
    file = io.BytesIO()
    np.savez_compressed(file, **kept)
    return file.getvalue()
