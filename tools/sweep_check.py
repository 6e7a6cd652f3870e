"""Kill a sweep of 4 arms and 2 seeds twice, and compare all of its runs with separate ones.

    python tools/sweep_check.py --folder runs/sweep-check

The recipe is the quickstart's on one rank, and the text is Python's own sources. The sweep shares
trunks. It is killed with SIGKILL at a random moment while a run trains, and again while a branch is
made. At the end every loss and gradient norm of its runs is compared, bit for bit, with the same
recipes trained alone. The last lines are a row of the table in docs/measured.md. Its processor time
counts everything that was started, also what a kill has made useless.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from soak import RECIPE

from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.documents import texts
from tst_megatron.data.text.standard_library import write_standard_library_corpus
from tst_megatron.data.tokenizer.train import train_sentencepiece
from tst_megatron.sweep.plan import SweepPlan, read_plan
from tst_megatron.training.report.metrics_file import read_metrics

ARMS = "tst,reset-optimizer,baseline,longer-1.5"
SEEDS = 2
COMMAND = (sys.executable, "-m", "tst_megatron")
SECONDS_TO_WAIT = 1800.0
_SET_CHILD_SUBREAPER = 36


def overrides(text: Path, steps: int) -> list[str]:
    return [
        f"data={json.dumps({str(text): 1.0})}",
        *("vocab-size=512", "expert-model-parallel-size=1", "seq-length=64", "eval-iters=2"),
        *(f"train-iters={steps}", f"lr-wsd-decay-iters={steps // 5}", "lr-warmup-iters=10"),
        *(f"eval-interval={steps // 4}", f"save-interval={steps // 8}"),
    ]


def prepared_text(folder: Path) -> Path:
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer.model"
    if not (folder / "text" / "manifest.json").exists():
        write_standard_library_corpus(corpus)
        train_sentencepiece(texts([corpus]), tokenizer, vocab_size=512)
        prepare([corpus], tokenizer, folder / "text", workers=2)
    return folder / "text"


def words_of(process: int) -> list[str]:
    """The command line of a process; none if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def children(process: int) -> list[int]:
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in found.split()]


def works_on(process: int, command: str) -> bool:
    """Whether a sweep has started a command that runs now."""
    return any(command in words_of(child) for child in children(process))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {SECONDS_TO_WAIT:.0f} s for {what}")
        time.sleep(0.05)


def killed(sweep: list[str], log: Path, command: str, moments: random.Random) -> None:
    """Start the sweep, and kill it some seconds after it has started a command."""
    with log.open("ab") as output:
        process = subprocess.Popen(sweep, stdout=output, stderr=output)
    wait_until(lambda: works_on(process.pid, command) or process.poll() is not None, f"`{command}`")
    time.sleep(moments.uniform(0.0, 30.0 if command == "train" else 5.0))
    at_work = [word for child in children(process.pid) for word in words_of(child)[3:4]]
    process.send_signal(signal.SIGKILL)
    if process.wait() == 0:
        raise SystemExit("the sweep had ended before it was killed")
    print(f"killed while it worked on: {', '.join(at_work) or 'nothing'}", flush=True)


def bits(run: Path) -> dict[tuple[str, int], list[str]]:
    """Every loss and gradient norm of a run, bit for bit."""
    return {
        (event, row["step"]): [
            struct.pack("<d", row[key]).hex() for key in row if "loss" in key or key == "grad-norm"
        ]
        for event in ("step", "validation")
        for row in read_metrics(run / "metrics.jsonl", event=event)
    }


@contextlib.contextmanager
def measured() -> Iterator[list[float]]:
    """Fill a list with the seconds of a block, and the processor time of all that it starts."""
    found: list[float] = []
    begun, before = time.monotonic(), cpu_seconds()
    yield found
    # What a killed sweep has left comes to this process, which is their reaper.
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    found += [time.monotonic() - begun, cpu_seconds() - before]


def cpu_seconds() -> float:
    """Processor time of all processes that were started from here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def train_alone(plan: SweepPlan, folder: Path) -> None:
    """Train every recipe of a sweep by itself."""
    for run in plan.runs:
        words = ["train", str(plan.recipe(run.name)), "--run-folder", str(folder / run.name)]
        with (folder.parent / f"alone-{run.name}.log").open("ab") as log:
            subprocess.run([*COMMAND, *words], stdout=log, stderr=log, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep-check"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    text, moments = prepared_text(folder), random.Random(options.seed)
    sweep = [*COMMAND, "sweep", str(RECIPE), *overrides(text, options.steps), "--arms", ARMS]
    sweep += ["--seeds", str(SEEDS), "--share-trunks", "--output", str(folder / "sweep")]
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with measured() as together:
        for command in ("train", "branch"):
            killed(sweep, folder / "sweep.log", command, moments)
        with (folder / "sweep.log").open("ab") as log:
            status = subprocess.run(sweep, stdout=log, stderr=log, check=False).returncode
    plan = read_plan(folder / "sweep")
    if status or plan is None:
        raise SystemExit(f"the sweep ended with status {status}, see {folder / 'sweep.log'}")
    with measured() as alone:
        train_alone(plan, folder / "alone")
    different = [
        run.name
        for run in plan.runs
        if bits(plan.run(run.name)) != bits(folder / "alone" / run.name)
    ]
    for name in different:
        print(f"{name}: has other numbers than alone")
    print("| | steps | seconds | processor, s |")
    print(
        f"| sweep, killed twice | {plan.num_own_steps:,} | {together[0]:.0f} | {together[1]:.0f} |"
    )
    print(f"| the same runs alone | {plan.num_steps:,} | {alone[0]:.0f} | {alone[1]:.0f} |")
    verdict = "different" if different else "bit-identical"
    print(f"the numbers of {len(plan.runs)} runs are {verdict}")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
