"""Kill a run with SIGKILL at random moments, some inside a save, and prove that nothing was lost.

    make soak

A small Qwen3-MoE trains on two ranks, saving every few steps, in both phases. At seeded moments the
whole process group is killed; each restart has to go on, and at the end every loss and gradient
norm of every step must equal those of a run that nothing disturbed, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import track

from tst_megatron.checkpoint.folder import list_checkpoints, step_of
from tst_megatron.checkpoint.whole import problems
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.documents import texts
from tst_megatron.data.text.standard_library import write_standard_library_corpus
from tst_megatron.data.tokenizer.train import train_sentencepiece
from tst_megatron.training.report.metrics_file import read_metrics

RECIPE = Path(__file__).parent.parent / "examples" / "quickstart" / "tst.yaml"
SMALL = (
    "num-layers=2",
    "hidden-size=64",
    "kv-channels=16",
    "ffn-hidden-size=128",
    "moe-ffn-hidden-size=64",
    "num-experts=4",
    "vocab-size=512",
    "seq-length=32",
    "micro-batch-size=2",
    "global-batch-size=8",
    "eval-interval=10",
    "eval-iters=1",
    # Half of the kills fall into each phase.
    "tst.superposition-fraction=0.15",
)
STEPS_PER_KILL = 5
"""More than a run comes forward between two kills, which is two steps on average."""
SECONDS_TO_WAIT = 300.0


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill and what it met."""

    step: int
    """Last step that was logged."""
    is_inside_save: bool
    """A checkpoint was being written."""
    resumes_from: int
    """Step of the newest whole checkpoint."""


class Job(Protocol):
    """A started run."""

    def kill(self) -> None:
        """End its whole process group, at once, and wait until it is gone."""

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""


class LaunchedJob:
    """``tst-megatron train --nproc``: launcher, ranks and workers in one process group."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        """Start it with its output in a file."""
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tst_megatron", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def kill(self) -> None:
        """End the group."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def poll(self) -> int | None:
        """The launcher's status."""
        return self._process.poll()


def unfinished_saves(run: Path) -> list[Path]:
    """Checkpoints that Megatron has not called complete."""
    return [
        checkpoint
        for checkpoint in (run / "checkpoints").glob("iter_*")
        if not (checkpoint / "metadata.json").exists()
    ]


def last_step(run: Path) -> int:
    """Last step in the metrics, 0 if there is none; a line that is being written does not count."""
    metrics = run / "metrics.jsonl"
    if not metrics.exists():
        return 0
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1]
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def is_written_since(file: Path, begun: float) -> bool:
    """Whether a file was changed since a time: until then it tells of the run before."""
    return file.exists() and file.stat().st_mtime > begun


def newest_whole(run: Path) -> int:
    """Step of the newest whole checkpoint, 0 if there is none."""
    whole = (step_of(path) for path in list_checkpoints(run / "checkpoints") if not problems(path))
    return next(whole, 0)


def kill_at_random(run: Path, job: Job, moments: random.Random, *, inside_save: bool) -> Kill:
    """Wait for a random moment after the job has gone on, and kill it."""
    begun = time.time()
    wanted = newest_whole(run) + moments.randint(1, STEPS_PER_KILL + 1)
    deadline = time.monotonic() + SECONDS_TO_WAIT
    known = set(unfinished_saves(run))
    while (
        not is_written_since(run / "metrics.jsonl", begun)
        or last_step(run) < wanted
        or (inside_save and not set(unfinished_saves(run)) - known)
    ):
        if job.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the run ended or stood still before step {wanted} of a kill")
        time.sleep(0.002)
    time.sleep(moments.uniform(0.0, 0.03 if inside_save else 0.2))
    job.kill()
    return Kill(
        step=last_step(run),
        is_inside_save=bool(set(unfinished_saves(run)) - known),
        resumes_from=newest_whole(run),
    )


def soak(
    run: Path, start: Callable[[], Job], *, num_kills: int, seed: int, console: Console
) -> list[Kill]:
    """Kill a run ``num_kills`` times, let it end, and return what the kills met.

    Args:
        run: its folder.
        start: starts it, or goes on with it.
        num_kills: every second one waits for a save.
        seed: of the moments.
        console: where progress goes.
    """
    moments = random.Random(seed)
    kills = []
    for number in track(range(num_kills), "kills", console=console):
        kill = kill_at_random(run, start(), moments, inside_save=number % 2 == 1)
        kills.append(kill)
        where = "inside a save" if kill.is_inside_save else "between saves"
        console.print(f"killed at step {kill.step}, {where}; whole: step {kill.resumes_from}")
    job = start()
    while (status := job.poll()) is None:
        time.sleep(0.1)
    if status:
        raise SystemExit(f"after the kills the run ended with status {status}")
    return kills


def differences(run: Path, reference: Path) -> list[str]:
    """Numbers that are not those of the reference, and checkpoints that are not whole."""
    found = []
    for event in ("step", "validation"):
        rows, expected = (
            [
                {k: v for k, v in row.items() if k == "step" or "loss" in k or k == "grad-norm"}
                for row in read_metrics(folder / "metrics.jsonl", event=event)
            ]
            for folder in (run, reference)
        )
        if rows != expected:
            first = next((a for a, b in zip(rows, expected, strict=False) if a != b), len(rows))
            found.append(f"{event}: {len(rows)} rows against {len(expected)}, from {first} on")
    for checkpoint in list_checkpoints(run / "checkpoints"):
        found += [f"{checkpoint.name}: {problem}" for problem in problems(checkpoint, deep=True)]
    return found


def main() -> int:
    """Prepare, train the reference, soak, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    parser.add_argument("--async-save", action="store_true")
    options = parser.parse_args()
    console = Console()
    folder: Path = options.folder
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"--folder: {folder} is not empty. Name another, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    write_standard_library_corpus(folder / "corpus.jsonl")
    train_sentencepiece(texts([folder / "corpus.jsonl"]), folder / "o.model", vocab_size=512)
    prepare([folder / "corpus.jsonl"], folder / "o.model", folder / "text", workers=2)
    steps = STEPS_PER_KILL * options.kills + 20
    recipe = (str(RECIPE), f"data={json.dumps({str(folder / 'text'): 1.0})}", *SMALL)
    recipe += (f"train-iters={steps}", f"lr-wsd-decay-iters={steps // 5}", "save-interval=3")
    saves = ("async-save=true",) if options.async_save else ()

    def start(name: str, *more: str) -> LaunchedJob:
        run = ("--run-folder", str(folder / name), "--nproc", "2")
        return LaunchedJob(("train", *recipe, *more, *run), folder / f"{name}.log")

    console.print(f"{steps} steps without a kill")
    reference = start("reference")
    while (status := reference.poll()) is None:
        time.sleep(0.1)
    if status:
        raise SystemExit(f"the reference ended with status {status}")
    name = "killed-async" if options.async_save else "killed"
    begun = time.monotonic()
    kills = soak(
        folder / name,
        lambda: start(name, *saves),
        num_kills=options.kills,
        seed=options.seed,
        console=console,
    )
    found = differences(folder / name, folder / "reference")
    for line in found:
        console.print(line, style="red")
    inside = sum(kill.is_inside_save for kill in kills)
    losses = read_metrics(folder / name / "metrics.jsonl")[-1]["lm loss"]
    (folder / f"{name}.json").write_text(json.dumps([asdict(kill) for kill in kills], indent=1))
    console.print(
        f"{len(kills)} kills, {inside} inside a save, {time.monotonic() - begun:.0f} s; {steps} "
        f"steps, final loss {losses!r}: "
        + ("different from" if found else "bit-identical to")
        + " the run without a kill"
    )
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
