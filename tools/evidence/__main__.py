"""Train the sweeps of the evidence and keep their records.

    python tools/evidence                        all that has no record yet
    python tools/evidence --only map-base,noise  these sweeps alone
    python tools/evidence --list                 what there is, and what has a record
    python tools/evidence --again SWEEP/RUN      train a recorded run anew, and compare every loss
    python tools/evidence --page                 write docs/evidence.md from the records
    python tools/evidence --gpu --minutes 9      the sweeps for a GPU, a slice of nine minutes

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
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tst_megatron.sweep.jobs import COMMAND, Job
from tst_megatron.system.exit_status import BAD_INPUT, FAILED, FINISHED, STOPPED

# `python tools/evidence` has this folder in its path, and not the one that the package lies in.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.again import train_again  # noqa: E402
from evidence.plan import GPU_PLAN, PLAN, ROOT, WORK, Entry, PlanError, read_plan  # noqa: E402
from evidence.prepared import prepared  # noqa: E402
from evidence.records import write_record  # noqa: E402
from evidence.report.page import write_page  # noqa: E402
from evidence.runs import Run, commands_of, runs_of  # noqa: E402

SECONDS_BETWEEN_LOOKS = 10.0


def record_finished(runs: Sequence[Run], console: Console) -> list[Run]:
    """Record what was trained here to its end, and return the runs that are left."""
    for run in runs:
        if run.is_finished and not run.is_recorded:
            write_record(run)
            place = run.record.relative_to(ROOT)
            console.print(f"recorded {place}", highlight=False, soft_wrap=True)
    return [run for run in runs if not run.is_recorded]


def start(sweep: Entry, left: Sequence[Run], console: Console) -> Job[list[Run]]:
    """Start the commands that train the runs that are left."""
    commands, log = commands_of(sweep, left), WORK / f"{sweep.name}.log"
    console.print(f"{sweep.name}: {len(left)} run{'s' * (len(left) > 1)} to train: {log}")
    for words in commands:
        said = shlex.join(words[len(COMMAND) :])
        console.print(f"  tst-megatron {said}", highlight=False, soft_wrap=True)
    # One core for each run: more threads are slower at this size, and change the last digits.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return Job(list(left), commands, log=log, slot=0, environment=environment)


def train(
    sweeps: Sequence[Entry], console: Console, *, at_once: int, minutes: float | None = None
) -> int:
    """Train all runs that have no record, and return the exit status.

    Args:
        sweeps: in the order in which they are trained.
        console: where it is said.
        at_once: sweeps that train together.
        minutes: after which what trains saves and ends; None trains to the end.
    """
    waiting = list(sweeps)
    ending = None if minutes is None else time.monotonic() + 60 * minutes
    running: list[Job[list[Run]]] = []
    ended: dict[str, int] = {}
    is_cut = False
    while waiting or running:
        while waiting and len(running) < at_once:
            sweep = waiting.pop(0)
            prepared(sweep.text, console)
            if left := record_finished(runs_of(sweep), console):
                running.append(start(sweep, left, console))
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if ending is not None and time.monotonic() > ending:
            ending, is_cut = None, bool(waiting)
            waiting = []
            for job in running:
                job.stop()
        for job in list(running):
            status = job.poll()
            record_finished(job.run, console)
            if status is not None:
                running.remove(job)
                name = job.run[0].sweep.name
                console.print(f"{name}: ended with {status}")
                ended[name] = status
    failed = [name for name, status in ended.items() if status not in (FINISHED, STOPPED)]
    if failed:
        console.print(f"failed: {', '.join(failed)}. The same command tries again", style="red")
        return FAILED
    if is_cut or STOPPED in ended.values():
        console.print("stopped before the end. The same command goes on", highlight=False)
        return STOPPED
    return FINISHED


def show(sweeps: Sequence[Entry], console: Console) -> None:
    table = Table("sweep", "recorded", "question", box=None)
    for sweep in sweeps:
        runs = runs_of(sweep, as_planned=True)
        number = f"{sum(run.is_recorded for run in runs)} of {len(runs)}"
        table.add_row(sweep.name, number, sweep.about)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", help="names of sweeps with commas between them, in the order to train"
    )
    parser.add_argument("--list", action="store_true", help="show the sweeps, and train nothing")
    parser.add_argument("--again", metavar="SWEEP/RUN", help="train a recorded run anew")
    parser.add_argument("--page", action="store_true", help="write docs/evidence.md")
    parser.add_argument("--at-once", type=int, help="sweeps that train together; 2, or 1 on a GPU")
    parser.add_argument("--gpu", action="store_true", help="the sweeps of gpu.yaml")
    parser.add_argument("--minutes", type=float, help="after which all save and end")
    options = parser.parse_args()
    # Data, runs and records have names relative to the project.
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    console = Console()
    sweeps = read_plan(GPU_PLAN if options.gpu else PLAN)
    if options.only:
        names = options.only.split(",")
        named = {sweep.name: sweep for sweep in sweeps}
        if unknown := set(names) - set(named):
            raise PlanError(f"--only {', '.join(sorted(unknown))}: the plan has no such sweep")
        sweeps = [named[name] for name in names]
    if options.list:
        show(sweeps, console)
        return 0
    if options.page:
        write_page()
        return 0
    if options.again:
        return train_again(options.again, console)
    at_once = options.at_once or (1 if options.gpu else 2)
    return train(sweeps, console, at_once=at_once, minutes=options.minutes)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlanError as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_INPUT)
