"""List the runs of a sweep or of branches, and the commands that train those without a record."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evidence.plan import RECIPES, ROOT, WORK, Branches, Entry, PlanError, Sweep
from tst_megatron.checkpoint.folder import checkpoint_of
from tst_megatron.sweep.arms import arms_named
from tst_megatron.sweep.grid import combination_name, combinations
from tst_megatron.sweep.jobs import COMMAND
from tst_megatron.sweep.keys import words_of
from tst_megatron.sweep.members import make_members
from tst_megatron.sweep.plan import SweepPlan, read_plan
from tst_megatron.sweep.speed import is_finished
from tst_megatron.training.report.metrics_file import events_at
from tst_megatron.training.run.state import read_state

RESULTS = ROOT / "benchmarks" / "results" / "evidence"
GPU_RESULTS, GPU_PREFIX = RESULTS.with_name("evidence-gpu"), "gpu-"
RECIPE = "recipe.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of the evidence."""

    sweep: Entry
    name: str
    folder: Path
    recipe: Path
    """Where its complete recipe is, once its training has begun."""

    @property
    def record(self) -> Path:
        """Return where it is recorded."""
        return record_of(f"{self.sweep.name}/{self.name}")

    @property
    def is_recorded(self) -> bool:
        """Tell whether it was trained and recorded, here or on another machine."""
        return (self.record / RECIPE).exists()

    @property
    def is_finished(self) -> bool:
        """Tell whether it was trained here to its end, and evaluated there."""
        if not is_finished(self.folder):
            return False
        state = read_state(self.folder / "state.json")
        assert state is not None, "a finished run has a state"
        return "validation" in events_at(self.folder / "metrics.jsonl", state["step"])


def record_of(name: str) -> Path:
    """Return where ``SWEEP/RUN`` is recorded; runs for a GPU apart from those of the page."""
    return (GPU_RESULTS if name.startswith(GPU_PREFIX) else RESULTS) / name


def train_words(recipe: Path, folder: Path) -> list[str]:
    """Return the words after ``tst-megatron`` that train a run, or resume it."""
    return ["train", str(recipe), "--run-folder", str(folder)]


def branch_words(sweep: Branches, run: str, trunk: Path, folder: Path) -> list[str]:
    """Return the words after ``tst-megatron`` that make a branch."""
    keys = {combination_name(keys): keys for keys in combinations(sweep.grid)}[run]
    step = ["--step", str(sweep.step), "--output", str(folder)]
    return ["branch", str(trunk), *words_of(keys), *step]


def listed(sweep: Entry) -> list[Run]:
    """Return all runs without writing a plan; also while the sweep trains."""
    if isinstance(sweep, Branches):
        return runs_of(sweep)
    members = make_members(
        RECIPES / sweep.recipe,
        sweep.overrides(),
        grid=sweep.grid,
        arms=arms_named(",".join(sweep.arms)),
        num_seeds=sweep.seeds,
    )
    folder = SweepPlan(folder=sweep.folder, unit_chunks=members.unit_chunks, runs=())
    return [
        Run(sweep=sweep, name=name, folder=folder.run(name), recipe=folder.recipe(name))
        for name in (member.name for member in members.runs)
    ]


def runs_of(sweep: Entry) -> list[Run]:
    """Return all runs; the plan of a sweep is written for that, or continued.

    Raises:
        PlanError: ``tst-megatron sweep`` refuses it.
    """
    if isinstance(sweep, Branches):
        names = [combination_name(keys) for keys in combinations(sweep.grid)]
        folders = {name: sweep.folder / "runs" / name for name in names}
        return [
            Run(sweep=sweep, name=name, folder=folder, recipe=folder / RECIPE)
            for name, folder in folders.items()
        ]
    words = [*COMMAND, *sweep.words(), "--plan"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PlanError(f"{sweep.name}: {done.stderr.strip() or done.stdout.strip()}")
    plan = read_plan(sweep.folder)
    assert plan is not None, "a plan was written"
    return [
        Run(sweep=sweep, name=run.name, folder=plan.run(run.name), recipe=plan.recipe(run.name))
        for run in plan.runs
    ]


def commands_of(sweep: Entry, left: Sequence[Run]) -> list[list[str]]:
    """Return the commands that train the runs that are left, to be run one after the other.

    Raises:
        PlanError: the trunk of branches is neither here nor recorded.
    """
    if isinstance(sweep, Sweep):
        return [[*COMMAND, *sweep.words()]]
    trunk, commands = _trunk(sweep)
    if all(run.folder.exists() for run in left):
        commands = []
    for run in left:
        if not run.folder.exists():
            # A branch appears whole.
            commands.append([*COMMAND, *branch_words(sweep, run.name, trunk, run.folder)])
        commands.append([*COMMAND, *train_words(run.recipe, run.folder)])
    return commands


def _trunk(sweep: Branches) -> tuple[Path, list[list[str]]]:
    """Return a run folder with the checkpoint of the step, and what makes it where none has it."""
    name, _, run = sweep.trunk.partition("/")
    trained, again = WORK / "sweeps" / name / "runs" / run, WORK / "again" / sweep.trunk
    for folder in (trained, again):
        if checkpoint_of(folder / "checkpoints", sweep.step).is_dir():
            return folder, []
    recipe = record_of(sweep.trunk) / RECIPE
    if not recipe.exists():
        raise PlanError(
            f"{sweep.name}: its trunk {sweep.trunk} is not recorded. Train that first: "
            f"python tools/evidence --only {name}"
        )
    return again, [[*COMMAND, *train_words(recipe, again)]]
