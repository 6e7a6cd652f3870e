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
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tst_megatron.system.exit_status import BAD_INPUT, STOPPED

# `python tools/evidence` has this folder in its path, and not the one that the package lies in.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.again import train_again  # noqa: E402
from evidence.plan import GPU_PLAN, PLAN, ROOT, Entry, PlanError, read_plan  # noqa: E402
from evidence.report.page import write_page  # noqa: E402
from evidence.runs import listed  # noqa: E402
from evidence.training import Training  # noqa: E402


def show(sweeps: Sequence[Entry], console: Console) -> None:
    table = Table("sweep", "recorded", "question", box=None)
    for sweep in sweeps:
        runs = listed(sweep)
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
        return train_again(options.again, sweeps, console)
    at_once = options.at_once or (1 if options.gpu else 2)
    return Training(sweeps, console, at_once=at_once, minutes=options.minutes).run()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlanError as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_INPUT)
