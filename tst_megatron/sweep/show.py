"""Show a sweep to a person: its plan, how it gets on, and how it ended."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from tst_megatron.sweep.plan import RUNS, PlannedRun, SweepPlan
from tst_megatron.sweep.running import Outcome
from tst_megatron.sweep.speed import Speed, is_finished, measure, own_steps_done, seconds_left
from tst_megatron.system.problems import MOST
from tst_megatron.system.progress import SECONDS_BETWEEN_LINES
from tst_megatron.training.console import duration


def say(console: Console, line: str, *, style: str | None = None) -> None:
    """Print a line as it is."""
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


SECONDS_OF_A_SPEED = 20.0
"""Between two measurements of the speed."""


# --- the plan ------------------------------------------------------------------------------------


def show_plan(plan: SweepPlan, notes: Sequence[str], console: Console) -> None:
    """Print every run, below the run that it branches from, and what the sweep trains in all."""
    table = Table("run", box=None, padding=(0, 2, 0, 0))
    for name in ("steps", "of its own", "from step"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for run, depth in _as_tree(plan):
        name = f"{'   ' * (depth - 1)}{'└─ ' if depth else ''}{run.name}"
        step = f"{run.trunk.step:,}" if run.trunk else ""
        table.add_row(
            Text(name), f"{run.num_steps:,}", f"{run.num_own_steps:,}", step, _state(plan, run)
        )
    console.print(table)
    for line in (*plan_lines(plan), *notes):
        say(console, line)


def show_time(plan: SweepPlan, console: Console, *, at_once: int) -> None:
    """Say how long the rest of a sweep takes, if one of its runs has trained some steps."""
    done = {
        run.name: run.num_own_steps
        if is_finished(plan.run(run.name))
        else own_steps_done(plan, run)
        for run in plan.runs
    }
    if (speed := measure(plan)) and sum(done.values()) < plan.num_own_steps:
        left = seconds_left(plan, done, speed=speed, start_seconds=0.0, at_once=at_once)
        say(console, f"about {duration(left)} left{_by(speed)}, without starts")


def _by(speed: Speed) -> str:
    runs = ", ".join(speed.by[:MOST]) + (", ..." if len(speed.by) > MOST else "")
    return f", by the speed of {runs}: {speed.step_seconds:.3g} s a step"


def _state(plan: SweepPlan, run: PlannedRun) -> Text:
    if is_finished(plan.run(run.name)):
        return Text("finished", style="green")
    done = own_steps_done(plan, run)
    return Text(f"{_count(done, 'step')} done" if done else "")


def plan_lines(plan: SweepPlan) -> list[str]:
    """Say in sentences what a sweep trains, and what its runs have in common."""
    total, own = plan.num_steps, plan.num_own_steps
    num_runs = _count(len(plan.runs), "run")
    steps = f"{num_runs}, {own:,} steps"
    if own < total:
        number = sum(run.trunk is not None for run in plan.runs)
        save = "1 branch saves" if number == 1 else f"{number:,} branches save"
        steps += f" instead of {total:,}: {save} {1 - own / total:.0%}"
    return [
        steps,
        f"all arms read the stream in units of {_count(plan.unit_chunks, 'chunk')} "
        "(tst.stream-unit-bags), which every bag size divides",
    ]


def _as_tree(plan: SweepPlan) -> Iterator[tuple[PlannedRun, int]]:
    """Yield each run before its branches, with its depth."""

    def below(name: str | None, depth: int) -> Iterator[tuple[PlannedRun, int]]:
        for run in plan.runs:
            if (run.trunk.name if run.trunk else None) == name:
                yield run, depth
                yield from below(run.name, depth + 1)

    yield from below(None, 0)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


# --- while it trains -----------------------------------------------------------------------------


class Progression:
    """Shows a sweep while it trains: bars on a terminal, lines in a file."""

    def __init__(self, plan: SweepPlan, console: Console, *, at_once: int) -> None:
        """Show nothing yet; ``shown`` does."""
        self._plan, self._console, self._at_once = plan, console, at_once
        self._speed: Speed | None = None
        self._measured_at = 0.0
        self._has_estimated = False
        self._said_at = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._all = self._bars.add_task("all runs", total=plan.num_own_steps, left="")
        self._tasks: dict[str, TaskID] = {}

    @contextmanager
    def shown(self) -> Iterator[Progression]:
        """Keep the bars on the terminal while the block runs."""
        with self._bars:
            yield self

    def say(self, line: str) -> None:
        """Say a sentence above the bars."""
        say(self._console, line)

    def count(
        self, done: Mapping[str, int], running: Sequence[str], start_seconds: float | None
    ) -> None:
        """Show the steps that are done; ``running.Display`` has the arguments."""
        left = self._left(done, start_seconds)
        steps = sum(done.values())
        self._bars.update(self._all, completed=steps, left=f"{left} left" if left else "")
        for name in [name for name in self._tasks if name not in running]:
            self._bars.remove_task(self._tasks.pop(name))
        own = {run.name: run.num_own_steps for run in self._plan.runs}
        for name in running:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=own[name], left="")
            self._bars.update(self._tasks[name], completed=done[name])
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said_at >= SECONDS_BETWEEN_LINES:
            self._said_at = now
            more = f", about {left} left" if left else ""
            self.say(f"{steps:,} of {self._plan.num_own_steps:,} steps{more}")

    def _left(self, done: Mapping[str, int], start_seconds: float | None) -> str | None:
        now = time.monotonic()
        if self._speed is None or now - self._measured_at > SECONDS_OF_A_SPEED:
            self._speed, self._measured_at = measure(self._plan), now
        if (speed := self._speed) is None:
            return None
        left = duration(
            seconds_left(
                self._plan,
                done,
                speed=speed,
                start_seconds=start_seconds or 0.0,
                at_once=self._at_once,
            )
        )
        if not self._has_estimated:
            self._has_estimated = True
            starts = f" and {start_seconds:.0f} s for a start" if start_seconds else ""
            self.say(f"about {left} left{_by(speed)}{starts}")
        return left


# --- the end -------------------------------------------------------------------------------------


def show_end(
    plan: SweepPlan, outcome: Outcome, console: Console, *, seconds: float, again: str
) -> None:
    """Say how a sweep ended, which runs failed, and what to do next.

    Args:
        plan: of the sweep.
        outcome: of its runs.
        console: where it is said.
        seconds: that this call took.
        again: the command that continues the sweep.
    """
    num = len(outcome.finished)
    say(console, f"{num} of {_count(len(plan.runs), 'run')} finished; {duration(seconds)}")
    for name, reason in outcome.failed.items():
        say(console, f"{name}: failed: {reason} (log: {plan.log(name)})", style="red")
    if num == len(plan.runs):
        say(console, f"compare  {compare_command(plan)}")
    else:
        say(console, f"continue  {again}")


def compare_command(plan: SweepPlan) -> str:
    """Return the command that compares the runs of a sweep."""
    runs, page = plan.folder / RUNS, plan.folder / "compare.html"
    return f"tst-megatron compare {shlex.quote(str(runs))}/* --html {shlex.quote(str(page))}"
