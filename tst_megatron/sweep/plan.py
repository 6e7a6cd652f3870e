"""Plan a sweep: its runs, what each branches from, and the files that say so.

::

    sweeps/k/
      sweep.json                     the plan; the sweep continues by it
      base.yaml                      the given recipe, with what the command line gave
      recipes/NAME.yaml              one run each, complete
      runs/NAME/                     a run folder each
      logs/NAME.log                  what the commands of a run printed

Once a run has begun, a plan only grows: the same command with more values, arms or seeds adds runs.
A command that would change a run of the plan is refused, since it may have been trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tst_megatron.recipe.check.plain import PlainCheck
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.sweep.arms import Keys
from tst_megatron.sweep.keys import (
    branch_differences,
    differences,
    file_of,
    flat_keys,
    words_of,
)
from tst_megatron.sweep.members import Member, Members
from tst_megatron.sweep.trunks import Course, Trunk, in_turns, plan_trunks
from tst_megatron.system.files import write_beside
from tst_megatron.system.problems import shortened
from tst_megatron.system.records import Damaged, block_of, read_json

SWEEP, BASE, RECIPES, RUNS, LOGS = "sweep.json", "base.yaml", "recipes", "runs", "logs"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    arm: str
    seed: int
    num_steps: int
    trunk: Trunk | None
    """The run that it branches from, and the step."""

    @property
    def num_own_steps(self) -> int:
        """Steps that it trains itself."""
        return self.num_steps - (self.trunk.step if self.trunk else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """All runs of a sweep, each after its trunk."""

    folder: Path
    unit_chunks: int
    """Chunks of a unit of the stream (U), the same in all runs."""
    runs: tuple[PlannedRun, ...]

    @property
    def num_steps(self) -> int:
        """Steps of all runs, if each was trained from its beginning."""
        return sum(run.num_steps for run in self.runs)

    @property
    def num_own_steps(self) -> int:
        """Steps that the sweep trains."""
        return sum(run.num_own_steps for run in self.runs)

    def trunks(self) -> dict[str, Trunk | None]:
        """Return what each run branches from."""
        return {run.name: run.trunk for run in self.runs}

    def has_begun(self) -> bool:
        """Tell whether a run has a folder: then the plan stays, and may only grow."""
        return any(self.run(run.name).exists() for run in self.runs)

    def recipe(self, name: str) -> Path:
        """Return the recipe file of a run."""
        return self.folder / RECIPES / f"{name}.yaml"

    def run(self, name: str) -> Path:
        """Return the run folder of a run."""
        return self.folder / RUNS / name

    def log(self, name: str) -> Path:
        """Return the file with what the commands of a run printed."""
        return self.folder / LOGS / f"{name}.log"

    def own_keys(self, run: PlannedRun) -> Keys:
        """Return the keys in which a run differs from ``base.yaml``.

        Raises:
            RecipeError: a recipe of the sweep cannot be read.
        """
        base, own = (load_recipe(path) for path in (self.folder / BASE, self.recipe(run.name)))
        return differences(flat_keys(base), flat_keys(own))

    def branch_keys(self, run: PlannedRun) -> Keys:
        """Return the keys that make a branch of its trunk.

        Raises:
            RecipeError: a recipe of the sweep cannot be read.
        """
        assert run.trunk is not None
        trunk, own = (load_recipe(self.recipe(name)) for name in (run.trunk.name, run.name))
        return branch_differences(trunk, own)


def make_plan(
    folder: Path,
    members: Members,
    checks: Mapping[str, PlainCheck],
    *,
    shares_trunks: bool,
    before: SweepPlan | None = None,
) -> SweepPlan:
    """Plan the runs of a sweep.

    Args:
        folder: of the sweep.
        members: the runs.
        checks: what their checks found, by name.
        shares_trunks: runs of one seed branch from each other where their steps are the same.
        before: the plan that is in the folder already, which stays as it is.

    Raises:
        RecipeError: a run of that plan would change, or is none any more.
    """
    if before is not None:
        _refuse_changes(before, members)
    known = before.trunks() if before else {}
    trunks: dict[str, Trunk | None] = dict(known)
    for seed in dict.fromkeys(run.seed for run in members.runs):
        names = [run.name for run in members.runs if run.seed == seed]
        if shares_trunks:
            courses = {name: Course.of(checks[name]) for name in names}
            trunks |= plan_trunks(courses, {n: known[n] for n in names if n in known})
        else:
            trunks |= {name: None for name in names if name not in known}
    by_name = {run.name: run for run in members.runs}
    order = in_turns([*known, *(name for name in by_name if name not in known)], trunks)
    runs = tuple(
        PlannedRun(
            name=name,
            arm=by_name[name].arm,
            seed=by_name[name].seed,
            num_steps=checks[name].schedule.num_steps,
            trunk=trunks[name],
        )
        for name in order
    )
    return SweepPlan(folder=folder, unit_chunks=members.unit_chunks, runs=runs)


def _refuse_changes(before: SweepPlan, members: Members) -> None:
    now = {run.name: run.recipe for run in members.runs}
    problems = []
    if before.unit_chunks != members.unit_chunks:
        problems.append(
            f"{before.folder}: its runs read the stream in units of {before.unit_chunks} chunks, "
            f"and these bag sizes need {members.unit_chunks}. Use another --output, or bag sizes "
            f"that divide {before.unit_chunks}"
        )
    elif lost := [run.name for run in before.runs if run.name not in now]:
        problems += [
            f"{before.folder}: has the run {name}, which this command does not make. Give the "
            "options that made it too, or use another --output"
            for name in lost
        ]
    for run in before.runs if not problems else ():
        old = load_recipe(before.recipe(run.name))
        problems += old.problems
        was = flat_keys(old)
        changed = differences(was, flat_keys(now[run.name]))
        problems += [
            f"{run.name}: {key} was {was.get(key)!r} in {before.folder}, and is now {value!r}. "
            "Give the old value, or use another --output"
            for key, value in changed.items()
        ]
    if problems:
        raise RecipeError(shortened(problems))


# --- files ---------------------------------------------------------------------------------------


def read_plan(folder: Path) -> SweepPlan | None:
    """Return the plan in a folder; None if there is none.

    Raises:
        ValueError: there is something else in the folder, or the plan is damaged.
    """
    file = folder / SWEEP
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output: {folder} is not a folder. Name another")
    try:
        said = read_json(file, {"format": int, "stream unit bags": int, "runs": list})
        if said is not None:
            if said["format"] != FORMAT:
                raise Damaged(f"has the format {said['format']}, and this version reads {FORMAT}")
            runs = tuple(_planned(each) for each in said["runs"])
            _check_order(runs)
            return SweepPlan(folder=folder, unit_chunks=said["stream unit bags"], runs=runs)
    except Damaged as error:
        raise ValueError(f"{file}: {error}. Bring it back, or use another --output") from error
    ours = {BASE, RECIPES, RUNS, LOGS, "lock", "lock-ranks"}
    strange = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name not in ours and not path.name.startswith(".")
    )
    if strange or (folder / RUNS).exists():
        raise ValueError(
            f"--output: {folder} is not empty, and has no {SWEEP}. Name another folder, or empty it"
        )
    return None


def _planned(said: Any) -> PlannedRun:
    run = block_of(said, {"name": str, "arm": str, "seed": int, "steps": int})
    trunk = None
    if run.get("trunk") is not None:
        where = block_of(run["trunk"], {"name": str, "step": int})
        trunk = Trunk(name=where["name"], step=where["step"])
    return PlannedRun(
        name=run["name"], arm=run["arm"], seed=run["seed"], num_steps=run["steps"], trunk=trunk
    )


def _check_order(runs: Sequence[PlannedRun]) -> None:
    before: set[str] = set()
    for run in runs:
        if run.name in before or (run.trunk and run.trunk.name not in before):
            raise Damaged(f"names {run.name} twice, or before the run that it branches from")
        before.add(run.name)


def _said_of(run: PlannedRun) -> dict[str, Any]:
    said = {"name": run.name, "arm": run.arm, "seed": run.seed, "steps": run.num_steps}
    return {**said, "trunk": asdict(run.trunk) if run.trunk else None}


def write_plan(
    plan: SweepPlan, members: Members, *, given: Path, before: SweepPlan | None = None
) -> None:
    """Write the recipes and then the plan, which names only recipes that are there.

    Args:
        plan: of the sweep.
        members: its runs, with their recipes.
        given: the recipe that the user named.
        before: the plan that is there already; its recipes stay as they are. Without one, recipes
            that an earlier plan has left are removed.
    """
    (plan.folder / RECIPES).mkdir(parents=True, exist_ok=True)
    (plan.folder / LOGS).mkdir(exist_ok=True)
    if before is None:
        comment = f"{given}, with what the command line gave. The runs of this sweep build on it."
        text = file_of(flat_keys(members.base), comment=comment)
        write_beside(plan.folder / BASE, text)
        wanted = {plan.recipe(member.name) for member in members.runs}
        for path in set((plan.folder / RECIPES).glob("*.yaml")) - wanted:
            path.unlink()
    base = flat_keys(load_recipe(plan.folder / BASE))
    known = before.trunks() if before else {}
    for member in members.runs:
        if member.name not in known:
            _write_recipe(plan.recipe(member.name), base, member)
    said = {
        "format": FORMAT,
        "stream unit bags": plan.unit_chunks,
        "runs": [_said_of(run) for run in plan.runs],
    }
    write_beside(plan.folder / SWEEP, json.dumps(said, indent=2) + "\n")


def _write_recipe(path: Path, base: Mapping[str, Any], member: Member) -> None:
    """Write a recipe that stands alone, with what differs from ``base.yaml`` in its comment.

    A run folder keeps a copy of it, from which a base beside it could not be found.
    """
    keys = flat_keys(member.recipe)
    lines = [member.meaning] if member.meaning else []
    lines += [f"Beside {BASE}: {word}" for word in words_of(differences(base, keys))]
    comment = "\n".join(lines) or f"The recipe of {BASE}."
    write_beside(path, file_of(keys, comment=comment))
    assert flat_keys(load_recipe(path)) == keys, path
