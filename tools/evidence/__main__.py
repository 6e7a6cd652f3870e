"""Train the sweeps of the evidence and keep their records.

    python tools/evidence                        all that has no record yet
    python tools/evidence --only map-base,noise  these sweeps alone
    python tools/evidence --list                 what there is, and what has a record
    python tools/evidence --again SWEEP/RUN      train a recorded run anew, and compare every loss

A sweep is trained by ``tst-megatron sweep`` with shared trunks, so it goes on where it was stopped.
Each finished run is recorded at once under ``benchmarks/results/evidence/``. A sweep of which all
runs are recorded is not trained on another machine. Two sweeps train at the same time, each on one
core.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tst_megatron.sweep.jobs import COMMAND
from tst_megatron.sweep.plan import SweepPlan
from tst_megatron.sweep.plan import read_plan as read_sweep
from tst_megatron.sweep.speed import is_finished
from tst_megatron.system.processes import signals

# `python tools/evidence` has this folder in its path, and not the one that the package lies in.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.again import train_again  # noqa: E402
from evidence.plan import ROOT, WORK, PlanError, Sweep, read_plan  # noqa: E402
from evidence.prepared import prepared  # noqa: E402
from evidence.records import has_record, write_record  # noqa: E402

SECONDS_BETWEEN_LOOKS = 10.0


def planned(sweep: Sweep) -> SweepPlan:
    """Write the plan of a sweep, or read it again, with all runs of today's ``plan.yaml``."""
    done = subprocess.run(
        [*COMMAND, *sweep.words(), "--plan"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PlanError(f"{sweep.name}: {done.stderr.strip() or done.stdout.strip()}")
    plan = read_sweep(sweep.folder)
    assert plan is not None, "a plan was written"
    return plan


def missing(sweep: Sweep, plan: SweepPlan) -> list[str]:
    return [run.name for run in plan.runs if not has_record(sweep, run.name)]


def record_finished(sweep: Sweep, plan: SweepPlan, console: Console) -> None:
    for run in plan.runs:
        if is_finished(plan, run) and not has_record(sweep, run.name):
            place = write_record(sweep, run.name, plan.run(run.name), plan.recipe(run.name))
            console.print(f"recorded {place.relative_to(ROOT)}", highlight=False, soft_wrap=True)


class Trained:
    """A sweep while it trains."""

    def __init__(self, sweep: Sweep, plan: SweepPlan) -> None:
        self.sweep, self.plan = sweep, plan
        self.log = WORK / f"{sweep.name}.log"
        # One core for each run: more threads are slower at this size, and change the last digits.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, *sweep.words()],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Its runs save and end when this process does, however that ends.
                preexec_fn=partial(signals.end_with, os.getpid(), signal.SIGTERM),
            )


def train(sweeps: Sequence[Sweep], console: Console, *, at_once: int) -> int:
    """Train all runs that have no record, and return the exit status."""
    waiting = list(sweeps)
    running: list[Trained] = []
    failed = []
    while waiting or running:
        while waiting and len(running) < at_once:
            sweep = waiting.pop(0)
            prepared(sweep.text, console)
            plan = planned(sweep)
            record_finished(sweep, plan, console)
            if not (left := missing(sweep, plan)):
                continue
            running.append(Trained(sweep, plan))
            console.print(f"{sweep.name}: {len(left)} runs to train: {running[-1].log}")
            console.print(f"  tst-megatron {shlex.join(sweep.words())}", soft_wrap=True)
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for each in list(running):
            status = each.process.poll()
            record_finished(each.sweep, each.plan, console)
            if status is not None:
                running.remove(each)
                console.print(f"{each.sweep.name}: ended with {status}")
                failed += [each.sweep.name] * bool(status)
    if failed:
        console.print(f"failed: {', '.join(failed)}. The same command goes on", style="red")
    return 1 if failed else 0


def show(sweeps: Sequence[Sweep], console: Console) -> None:
    table = Table("sweep", "recorded", "question", box=None)
    for sweep in sweeps:
        plan = planned(sweep)
        left = missing(sweep, plan)
        number = f"{len(plan.runs) - len(left)} of {len(plan.runs)}"
        table.add_row(sweep.name, number, sweep.about)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="names of sweeps with commas between them")
    parser.add_argument("--list", action="store_true", help="show the sweeps, and train nothing")
    parser.add_argument("--again", metavar="SWEEP/RUN", help="train a recorded run anew")
    parser.add_argument("--at-once", type=int, default=2, help="sweeps that train together")
    options = parser.parse_args()
    # Data, runs and records have names relative to the project.
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    console = Console()
    sweeps = read_plan()
    if options.only:
        chosen = options.only.split(",")
        if unknown := set(chosen) - {sweep.name for sweep in sweeps}:
            raise PlanError(f"--only {', '.join(sorted(unknown))}: the plan has no such sweep")
        sweeps = [sweep for sweep in sweeps if sweep.name in chosen]
    if options.list:
        show(sweeps, console)
        return 0
    if options.again:
        return train_again(options.again, console)
    return train(sweeps, console, at_once=options.at_once)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlanError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
