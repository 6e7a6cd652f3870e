"""Run the command ``tst-megatron sweep``: plan the runs, check them, train or submit them."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import getpid
from pathlib import Path

from rich.console import Console

from tst_megatron.recipe.check.plain import PlainCheck
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.sweep.arms import Arm, arms_named
from tst_megatron.sweep.grid import Grid, read_grid
from tst_megatron.sweep.jobs import COMMAND, environments
from tst_megatron.sweep.members import Members, check_members, make_members
from tst_megatron.sweep.plan import SweepPlan, make_plan, read_plan, write_plan
from tst_megatron.sweep.running import train_all
from tst_megatron.sweep.show import Progression, say, show_end, show_plan, show_time
from tst_megatron.sweep.slurm import write_submission
from tst_megatron.system.exit_status import BAD_INPUT, FINISHED
from tst_megatron.system.files import write_beside
from tst_megatron.system.processes import signals
from tst_megatron.system.processes.lock import held


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The command line of a sweep; ``cli/sweep.py`` has the meanings."""

    recipe: Path
    overrides: tuple[str, ...]
    grid: tuple[str, ...]
    seeds: int
    arms: str | None
    share_trunks: bool
    output: Path
    at_once: int | None
    nproc: int | None
    plan_only: bool
    slurm: bool


def sweep(options: Options, console: Console, *, command: Sequence[str] = COMMAND) -> int:
    """Plan a sweep, and then train or submit its runs.

    Args:
        options: of the command line.
        console: where the plan and the progress are shown.
        command: the words that stand for ``tst-megatron``.

    Returns:
        The exit status: 0 if all runs are finished, 75 if the sweep was stopped, 1 if a run failed.

    Raises:
        RecipeError: recipes are wrong; with all problems of all arms.
        ValueError: an option is wrong.
    """
    begun = time.monotonic()
    members = _members(options)
    # Whoever plans or submits may do so before the text is prepared, or on another machine.
    is_here = not (options.plan_only or options.slurm)
    checks, missing = check_members(
        members.runs, world_size=options.nproc, needs_text=not options.plan_only
    )
    nproc = _num_ranks(options, checks) if is_here else options.nproc
    shares = environments(
        at_once=options.at_once or 1,
        nproc=nproc,
        is_on_cpu=not is_here or all(each.recipe.profile == "cpu" for each in checks.values()),
    )
    read_plan(options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    with held(options.output, say=partial(say, console)):
        plan = _planned(options, members, checks)
        show_plan(plan, [*members.notes, *missing], console)
        if not is_here:
            show_time(plan, console, at_once=len(shares))
        if options.slurm:
            script = write_submission(plan, at_once=options.at_once)
            say(console, f"submit  bash {shlex.quote(str(script))} [OPTIONS OF SBATCH]")
        if not is_here:
            return FINISHED
        _ask_megatron(plan, checks, nproc, command, console)
        progression = Progression(plan, console, at_once=len(shares))
        with progression.shown():
            outcome = train_all(
                plan, environments=shares, nproc=nproc, display=progression, command=command
            )
        seconds = time.monotonic() - begun
        show_end(plan, outcome, console, seconds=seconds, again=shlex.join(_again()))
        return outcome.status()


def _again() -> list[str]:
    return ["tst-megatron", *sys.argv[1:]]


def _members(options: Options) -> Members:
    if not options.grid and options.arms is None and options.seeds == 1:
        raise ValueError("sweep: a single run needs none. Give --grid, --arms or --seeds")
    problems: list[str] = []
    before = read_plan(options.output)
    grid: Grid = {}
    arms: list[Arm] = []
    try:
        grid = read_grid(options.grid, options.overrides)
    except ValueError as error:
        problems += str(error).splitlines()
    try:
        arms = arms_named(options.arms)
    except ValueError as error:
        problems += str(error).splitlines()
    if problems:
        raise RecipeError(problems)
    return make_members(
        options.recipe,
        options.overrides,
        grid=grid,
        arms=arms,
        num_seeds=options.seeds,
        known={run.arm for run in before.runs} if before else (),
    )


def _num_ranks(options: Options, checks: Mapping[str, PlainCheck]) -> int | None:
    """Return the ranks of each run: as given, or the fewest that hold the models."""
    if options.nproc is not None:
        return options.nproc
    sizes = sorted({check.world_size for check in checks.values()})
    if len(sizes) > 1:
        raise ValueError(
            f"--nproc: the arms need {', '.join(map(str, sizes))} ranks at the least. Give the "
            "number that all of them are to have"
        )
    return sizes[0] if sizes[0] > 1 else None


def _planned(options: Options, members: Members, checks: Mapping[str, PlainCheck]) -> SweepPlan:
    before = read_plan(options.output)
    if before is not None and not before.has_begun():
        # Nothing was trained by it, so it may be another.
        before = None
    plan = make_plan(
        options.output, members, checks, shares_trunks=options.share_trunks, before=before
    )
    write_plan(plan, members, given=options.recipe, before=before)
    return plan


# --- Megatron's opinion ---------------------------------------------------------------------------


def _ask_megatron(
    plan: SweepPlan,
    checks: Mapping[str, PlainCheck],
    nproc: int | None,
    command: Sequence[str],
    console: Console,
) -> None:
    """Have Megatron check one recipe of each shape, before the first of its runs starts.

    Raises:
        RecipeError: Megatron refuses one; with what it says of each.
    """
    asked, problems = set(), []
    for run in plan.runs:
        shape = _shape(checks[run.name])
        if shape in asked:
            continue
        asked.add(shape)
        if plan.run(run.name).exists():
            # Its start has asked.
            continue
        say(console, f"{run.name}: asking Megatron about its recipe")
        words = ["check", str(plan.recipe(run.name)), *(["--nproc", str(nproc)] if nproc else [])]
        checked = subprocess.run(
            [*command, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=partial(signals.end_with, getpid()),
        )
        write_beside(plan.log(f"check-{run.name}"), checked.stdout + checked.stderr)
        if checked.returncode == BAD_INPUT:
            problems += [f"{run.arm}: {line}" for line in _problems_in(checked.stderr)]
        elif checked.returncode:
            problems.append(
                f"{run.arm}: the check of its recipe ended with status {checked.returncode} (log: "
                f"{plan.log(f'check-{run.name}')})"
            )
    if problems:
        raise RecipeError(problems)


def _problems_in(text: str) -> list[str]:
    """Return the problems that a command has listed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    listed = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return listed or lines


def _shape(check: PlainCheck) -> str:
    """Return what Megatron's own check of a recipe depends on.

    It looks at names, sizes and switches: not at the values of rates, and not at how many steps.
    """
    passed_over = ("seed", "train_iters", "lr_decay_iters", "lr_wsd_decay_iters")
    values = {
        name: value
        for name, value in vars(check.values).items()
        if name not in passed_over and not isinstance(value, float)
    }
    return repr(sorted(values.items(), key=lambda pair: pair[0]))
