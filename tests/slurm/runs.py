"""Real runs of the quickstart's recipe on two nodes, and what is done to them on the way."""

from __future__ import annotations

import json
import os
import signal
import struct
from pathlib import Path

from cluster import wait_until
from jobs import Jobs, events, names, ranks_of

RECIPE = "examples/quickstart/tst.yaml"
STEPS = 60
KEYS = (
    *(f"train-iters={STEPS}", "lr-warmup-iters=4", "lr-wsd-decay-iters=10"),
    *("eval-interval=30", "eval-iters=1", "save-interval=5"),
)
"""Both phases (the switch comes after step 24) in half a minute."""

LONG_STEPS = 400
LONG = (*KEYS, f"train-iters={LONG_STEPS}", "save-interval=1000", "tst.max-epochs=4")
"""Longer than the shortest time limits that Slurm has; only a signal saves on the way."""

UNINTERRUPTED = "uninterrupted"


def submit(
    jobs: Jobs,
    name: str,
    *,
    options: tuple[str, ...] = (),
    keys: tuple[str, ...] = KEYS,
    **variables: str,
) -> str:
    """Submit a run with a run folder of its own."""
    variables = {"RUN_FOLDER": f"runs/{name}", "PREFLIGHT": "no", "WATCH_SECONDS": "1", **variables}
    return jobs.submit("pretrain.sbatch", RECIPE, *keys, options=options, **variables)


def folder(jobs: Jobs, name: str) -> Path:
    return jobs.folder / "runs" / name


def rows(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_step(run: Path) -> int:
    return max((row["step"] for row in rows(run)), default=0)


def losses(run: Path) -> dict[tuple[str, int], list[str]]:
    """Every loss and gradient norm of a run, bit for bit."""
    return {
        (row["event"], row["step"]): [
            struct.pack("<d", row[key]).hex() for key in row if "loss" in key or key == "grad-norm"
        ]
        for row in rows(run)
    }


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a run has done a step, and with it saved one."""
    wait_until(lambda: last_step(run) >= step, what=f"step {step} of {run.name}")


RARE_SAVES = (*KEYS, "save-interval=1000")
"""Before the switch only a stop saves."""


def ask_to_stop(jobs: Jobs, job: str, run: Path) -> None:
    """What a person does, and Slurm before the end of a job's time."""
    wait_for_step(run, 8)
    jobs.cluster.run("scancel", "--signal=USR2", job)


def expect_saved_on_request(run: Path) -> None:
    """A stop signal made the run save, and the next start went on from there."""
    ended = [(step, text) for event, _, step, text in events(run) if event == "end"]
    assert ended[0][1] == "stopped: asked to stop; a checkpoint was saved"
    assert ended[0][0] >= 8 and ended[0][0] != 24, (
        "saved because it was asked, and not for the switch"
    )
    started = [step for event, _, step, _ in events(run) if event == "start"]
    assert started[1] == ended[0][0]


def kill_rank(jobs: Jobs, job: str, run: Path) -> None:
    wait_for_step(run, 8)
    os.kill(ranks_of(job)[1], signal.SIGKILL)


def hang_rank(jobs: Jobs, job: str, run: Path) -> None:
    wait_for_step(run, 8)
    os.kill(ranks_of(job)[1], signal.SIGSTOP)


def kill_node(jobs: Jobs, job: str, run: Path) -> None:
    wait_for_step(run, 8)
    node = jobs.cluster.run("scontrol", "show", "hostnames", jobs.cluster.fact(job, "NodeList"))
    jobs.cluster.kill_node(node.split()[1])


def preempt(jobs: Jobs, job: str, run: Path) -> None:
    """Send a job for which every node is wanted."""
    wait_for_step(run, 8)
    wanted = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    urgent = jobs.cluster.run("sbatch", "--parsable", *wanted, "--wrap=sleep 2").strip()
    wait_until(lambda: urgent not in jobs.cluster.jobs(), what="the urgent job")


def expect_same(
    jobs: Jobs, run: Path, *, reference: str = UNINTERRUPTED, steps: int = STEPS
) -> None:
    """The run was interrupted, went on, and has every number of the uninterrupted one."""
    assert names(run).count("start") > 1, events(run)
    state = json.loads((run / "state.json").read_text())
    assert (state["status"], state["step"]) == ("finished", steps)
    expected = losses(folder(jobs, reference))
    assert len(expected) > steps
    assert losses(run) == expected
    # Each step once, also in the file.
    done = [row["step"] for row in rows(run) if row["event"] == "step"]
    assert done == list(range(1, steps + 1))
