"""Train the runs of a sweep here, some at a time, until all are finished or it is asked to stop.

A run's own ``state.json`` says whether it is finished, so a sweep that was killed continues where
it was. A run that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from tst_megatron.checkpoint.folder import checkpoint_of
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.sweep.jobs import COMMAND, Job, commands_of
from tst_megatron.sweep.plan import PlannedRun, SweepPlan
from tst_megatron.sweep.speed import is_finished, own_steps_done
from tst_megatron.system.exit_status import FAILED, FINISHED, INTERRUPTED, STOPPED
from tst_megatron.system.processes import signals
from tst_megatron.training.run.folder import RunFolder

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_COUNTS = 2.0
"""Between two looks at the metrics of the runs."""


class Display(Protocol):
    """Shows a person how a sweep is getting on."""

    def say(self, line: str) -> None:
        """Say a sentence."""

    def count(
        self, done: Mapping[str, int], running: Sequence[str], start_seconds: float | None
    ) -> None:
        """Show how many steps of its own each run has made, and which train now."""


@dataclass(slots=True)
class Outcome:
    """The end of a sweep, by the names of its runs."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """With the reason."""
    stopped: list[str] = field(default_factory=list)
    """To be resumed, or not started yet."""
    is_interrupted: bool = False
    """The sweep itself was asked to stop."""
    is_ended_at_once: bool = False
    """It was asked twice, and nothing was saved."""

    def status(self) -> int:
        """Return the exit status."""
        if self.is_ended_at_once:
            return INTERRUPTED
        if self.failed and not self.is_interrupted:
            return FAILED
        return STOPPED if self.stopped or self.failed else FINISHED


class _Stop:
    """The stop signals that the sweep has got."""

    def __init__(self) -> None:
        self.is_wanted = False
        self.is_wanted_at_once = False
        self._first_at = 0.0

    def take(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.is_wanted:
            self.is_wanted, self._first_at = True, now
        elif number == signal.SIGINT and now - self._first_at > signals.SECONDS_OF_ONE_STOP:
            self.is_wanted_at_once = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.take) for number in signals.STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train_all(
    plan: SweepPlan,
    *,
    environments: Sequence[Mapping[str, str]],
    nproc: int | None,
    display: Display,
    command: Sequence[str] = COMMAND,
) -> Outcome:
    """Train the runs of a sweep that are not finished, each after its trunk.

    Called from the main thread, with which the runs end.

    Args:
        plan: of the sweep.
        environments: of the runs that train at the same time, as many as there are of these.
        nproc: ranks of each run; None trains it in one process.
        display: told what happens.
        command: the words that stand for ``tst-megatron``.
    """
    turns = _Turns(plan, environments, nproc, display, command)
    with turns.stop.listening():
        try:
            turns.until_the_end()
        finally:
            turns.kill()
    return turns.outcome


class _Turns:
    """The runs of a sweep while they are trained in turns."""

    def __init__(
        self,
        plan: SweepPlan,
        environments: Sequence[Mapping[str, str]],
        nproc: int | None,
        display: Display,
        command: Sequence[str],
    ) -> None:
        self.stop, self.outcome = _Stop(), Outcome()
        self._plan, self._nproc, self._command = plan, nproc, command
        self._environments, self._display = environments, display
        self._jobs: list[Job[PlannedRun]] = []
        self._waiting = {run.name: run for run in plan.runs}
        self._told_to_wait: set[str] = set()
        self._are_new: set[str] = set()
        """Runs whose first step this sweep waits for, to know how long a start takes."""
        self._start_seconds: float | None = None
        self._counted_at = float("-inf")
        self._done = dict.fromkeys(self._waiting, 0)

    def until_the_end(self) -> None:
        for run in list(self._waiting.values()):
            self._take_if_finished(run)
        while True:
            if self.stop.is_wanted:
                self._stop_jobs()
            for job in list(self._jobs):
                self._end(job)
            if not self.stop.is_wanted:
                self._start_ready()
            self._count()
            if not self._jobs and (self.stop.is_wanted or not self._waiting):
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self.outcome.stopped += self._waiting
        self._count(is_last=True)

    def kill(self) -> None:
        """End what still runs: nothing does, unless an error ends the sweep."""
        for job in self._jobs:
            job.stop(signal.SIGKILL)

    # --- starting ---------------------------------------------------------------------------------

    def _take_if_finished(self, run: PlannedRun) -> bool:
        if not is_finished(self._plan.run(run.name)):
            return False
        self._waiting.pop(run.name, None)
        self.outcome.finished.append(run.name)
        return True

    def _start_ready(self) -> None:
        for run in list(self._waiting.values()):
            if len(self._jobs) == len(self._environments):
                return
            if self._is_lost(run) or not self._is_ready(run) or self._take_if_finished(run):
                continue
            del self._waiting[run.name]
            self._start(run)

    def _start(self, run: PlannedRun) -> None:
        slot = min(set(range(len(self._environments))) - {job.slot for job in self._jobs})
        is_new = not self._plan.run(run.name).exists()
        try:
            commands = commands_of(self._plan, run, nproc=self._nproc, command=self._command)
        except RecipeError as error:
            self._fail(run, str(error))
            return
        log = self._plan.log(run.name)
        log.parent.mkdir(exist_ok=True)
        self._jobs.append(
            Job(run, commands, log=log, slot=slot, environment=self._environments[slot])
        )
        if not is_new:
            self._display.say(f"{run.name}: goes on")
            return
        self._are_new.add(run.name)
        origin = f" from step {run.trunk.step:,} of {run.trunk.name}" if run.trunk else ""
        self._display.say(f"{run.name}: starts{origin}")

    def _is_ready(self, run: PlannedRun) -> bool:
        """Tell whether a run can start: its folder is free, and its trunk has what it needs."""
        folder = self._plan.run(run.name)
        if folder.exists():
            user = RunFolder(folder).user()
            if user is not None and run.name not in self._told_to_wait:
                self._told_to_wait.add(run.name)
                self._display.say(f"{run.name}: in use by {user}. Waiting for the end of that")
            return user is None
        return run.trunk is None or self._has_ended(run.trunk.name)

    def _is_lost(self, run: PlannedRun) -> bool:
        """Give a run up if its trunk has ended without the checkpoint that it needs."""
        if run.trunk is None or self._plan.run(run.name).exists():
            return False
        name, step = run.trunk.name, run.trunk.step
        if name not in self.outcome.failed and name not in self.outcome.stopped:
            return False
        if checkpoint_of(self._plan.run(name) / "checkpoints", step).is_dir():
            return False
        del self._waiting[run.name]
        if name in self.outcome.stopped:
            self.outcome.stopped.append(run.name)
        else:
            self._fail(run, f"{name}, from which it branches, ended before step {step:,}")
        return True

    def _has_ended(self, name: str) -> bool:
        ended = self.outcome
        return name in ended.finished or name in ended.failed or name in ended.stopped

    # --- ending -----------------------------------------------------------------------------------

    def _stop_jobs(self) -> None:
        if not self.outcome.is_interrupted:
            self.outcome.is_interrupted = True
            if self._jobs:
                names = ", ".join(job.run.name for job in self._jobs)
                self._display.say(f"stopping: {names} {_saves(self._jobs)} a checkpoint")
            for job in self._jobs:
                job.stop()
        if self.stop.is_wanted_at_once and not self.outcome.is_ended_at_once:
            self.outcome.is_ended_at_once = True
            self.kill()

    def _end(self, job: Job[PlannedRun]) -> None:
        status = job.poll()
        if status is None:
            return
        self._jobs.remove(job)
        run = job.run
        if status == 0 and is_finished(self._plan.run(run.name)):
            self.outcome.finished.append(run.name)
            self._display.say(f"{run.name}: finished")
        elif status == STOPPED or self.stop.is_wanted:
            self.outcome.stopped.append(run.name)
        else:
            self._fail(run, self._reason(run, status))

    def _fail(self, run: PlannedRun, reason: str) -> None:
        self.outcome.failed[run.name] = reason
        self._display.say(f"{run.name}: failed: {reason}")

    def _reason(self, run: PlannedRun, status: int) -> str:
        state = RunFolder(self._plan.run(run.name)).state()
        said = str(state["reason"]) if state and state["status"] == "failed" else ""
        how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return f"{said} ({how})" if said else how

    # --- counting ---------------------------------------------------------------------------------

    def _count(self, *, is_last: bool = False) -> None:
        now = time.monotonic()
        if not is_last and now - self._counted_at < SECONDS_BETWEEN_COUNTS:
            return
        self._counted_at = now
        running = {job.run.name: job for job in self._jobs}
        for run in self._plan.runs:
            if run.name in self.outcome.finished:
                self._done[run.name] = run.num_own_steps
            elif is_last or run.name in running or self._done[run.name] == 0:
                self._done[run.name] = own_steps_done(self._plan, run)
            if run.name in self._are_new and self._done[run.name]:
                self._are_new.discard(run.name)
                if run.name in running:
                    self._start_seconds = now - running[run.name].begun
        self._display.count(self._done, list(running), self._start_seconds)


def _saves(jobs: Sequence[Job[PlannedRun]]) -> str:
    return "saves" if len(jobs) == 1 else "save"
