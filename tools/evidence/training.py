"""Train sweeps, some at the same time, and record each run as soon as it has ended."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence

from rich.console import Console

from evidence.plan import ROOT, WORK, Entry
from evidence.prepared import prepared
from evidence.records import write_record
from evidence.runs import Run, commands_of, runs_of
from tst_megatron.sweep.jobs import COMMAND, Job
from tst_megatron.sweep.speed import is_finished
from tst_megatron.system.exit_status import FAILED, FINISHED, STOPPED

SECONDS_BETWEEN_LOOKS = 10.0


class Training:
    """The sweeps that wait, those that train, and what became of the others."""

    def __init__(
        self,
        sweeps: Sequence[Entry],
        console: Console,
        *,
        at_once: int,
        minutes: float | None = None,
    ) -> None:
        """Plan to train all runs that have no record.

        Args:
            sweeps: in the order in which they are trained.
            console: where it is said.
            at_once: sweeps that train together.
            minutes: after which what trains saves and ends; None trains to the end.
        """
        self._waiting = list(sweeps)
        self._console, self._at_once = console, at_once
        self._ending = None if minutes is None else time.monotonic() + 60 * minutes
        self._running: list[Job[list[Run]]] = []
        self._failed: list[str] = []
        self._is_ending = self._is_cut = False

    def run(self) -> int:
        """Train, and return the exit status."""
        while self._waiting or self._running:
            self._start_next()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            self._end_the_slice()
            for job in list(self._running):
                self._look(job)
        if self._failed:
            names = ", ".join(self._failed)
            self._say(f"failed: {names}. The same command tries again")
            return FAILED
        if self._is_cut:
            self._say("stopped before the end. The same command goes on")
            return STOPPED
        return FINISHED

    def _start_next(self) -> None:
        while self._waiting and len(self._running) < self._at_once:
            sweep = self._waiting.pop(0)
            prepared(sweep.text, self._console)
            if left := self._record(runs_of(sweep)):
                self._running.append(self._start(sweep, left))

    def _start(self, sweep: Entry, left: Sequence[Run]) -> Job[list[Run]]:
        commands, log = commands_of(sweep, left), WORK / f"{sweep.name}.log"
        self._say(f"{sweep.name}: {len(left)} run{'s' * (len(left) > 1)} to train: {log}")
        for words in commands:
            self._say(f"  tst-megatron {shlex.join(words[len(COMMAND) :])}")
        # One core for each run: more threads are slower at this size, and change the last digits.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return Job(list(left), commands, log=log, slot=0, environment=environment)

    def _record(self, runs: Sequence[Run]) -> list[Run]:
        """Record what was trained here to its end, and return the runs that are left."""
        for run in runs:
            if run.is_finished and not run.is_recorded:
                write_record(run)
                self._say(f"recorded {run.record.relative_to(ROOT)}")
        return [run for run in runs if not run.is_recorded]

    def _end_the_slice(self) -> None:
        if self._ending is None or self._is_ending or time.monotonic() < self._ending:
            return
        self._is_ending, self._is_cut = True, bool(self._waiting)
        self._waiting = []
        for job in self._running:
            job.stop()

    def _look(self, job: Job[list[Run]]) -> None:
        status = job.poll()
        left = self._record(job.run)
        if status is None:
            return
        self._running.remove(job)
        name = job.run[0].sweep.name
        self._say(f"{name}: ended with {status}")
        # A sweep that is asked to stop before it trains ends by the signal.
        if left and (status == STOPPED or self._is_ending):
            self._is_cut = True
        elif left:
            self._failed.append(name)
            self._explain(left)

    def _explain(self, left: Sequence[Run]) -> None:
        for run in left:
            if is_finished(run.folder):
                self._say(
                    f"{run.folder}: was stopped in its last evaluation, so its last loss is "
                    "missing. Delete the folder, and it is trained again"
                )

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
