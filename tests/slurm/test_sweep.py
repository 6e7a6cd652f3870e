"""What `tst-megatron sweep --slurm` writes, and the job script that trains it."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import no_slurm
import pytest
from cluster import wait_until
from jobs import STUBS
from rich.console import Console
from test_given import RECIPE, refused

from tst_megatron.sweep.command import Options, sweep
from tst_megatron.sweep.plan import read_plan

SHORT = ("train-iters=40", "lr-warmup-iters=4", "lr-wsd-decay-iters=10", "eval-iters=1")
ARMS = "baseline,longer-1.5,longer-2,tst,slot-weights-1-over-i,reset-optimizer"
"""Three levels: the baseline, 1.5 times as long from its decay on, and twice as long from that."""


@pytest.fixture
def submission(checkout, text, monkeypatch):
    """The folder of a sweep in a checkout, with what submits it."""
    monkeypatch.chdir(checkout)
    options = Options(
        recipe=Path(RECIPE),
        overrides=(*SHORT, f"data={json.dumps({str(text): 1.0})}"),
        grid=(),
        seeds=1,
        arms=ARMS,
        share_trunks=True,
        output=Path("sweeps/a folder"),
        at_once=2,
        nproc=None,
        plan_only=False,
        slurm=True,
    )
    console = Console(record=True, width=200, file=open(os.devnull, "w"))
    assert sweep(options, console) == 0
    assert "submit  bash '" in console.export_text()
    return checkout / "sweeps" / "a folder"


def level(submission, depth):
    lines = (submission / "slurm" / f"level-{depth}.txt").read_text().splitlines()
    assert lines[0].startswith(f"# Level {depth} of the sweep")
    return [shlex.split(line) for line in lines[1:]]


def test_every_run_is_a_line_of_its_level(submission):
    plan = read_plan(submission)
    levels = [level(submission, depth) for depth in range(3)]
    assert sorted(words[0] for words in sum(levels, [])) == sorted(plan.trunks())
    assert [words[0].removesuffix("_seed-1234") for words in levels[0]] == [
        "baseline",
        "tst",
        "slot-weights-1-over-i",
    ]
    assert levels[0][2][1:] == ['tst.slot-weights="1/i"']
    assert [words[:2] for words in levels[1]] == [
        ["longer-1.5_seed-1234", "baseline_seed-1234@30"],
        ["reset-optimizer_seed-1234", "tst_seed-1234@16"],
    ]
    assert levels[1][0][2:] == ["train-iters=60"]
    assert levels[1][1][2:] == ["tst.reset-optimizer=true"]
    assert levels[2] == [["longer-2_seed-1234", "longer-1.5_seed-1234@50", "train-iters=80"]]
    assert not (submission / "slurm" / "level-3.txt").exists()


SBATCH = """#!/usr/bin/env bash
printf '%q ' "$@" "folder=$SWEEP_FOLDER" >>submitted
echo >>submitted
echo "$((100 + $(wc -l <submitted)));cluster"
"""


def submit(submission, checkout, *options, folder=None):
    (checkout / "bin").mkdir(exist_ok=True)
    (checkout / "bin" / "sbatch").write_text(SBATCH)
    (checkout / "bin" / "sbatch").chmod(0o755)
    return subprocess.run(
        ["bash", str(submission / "submit.sh"), *options],
        cwd=folder or checkout,
        env={**os.environ, "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def test_script_submits_an_array_for_each_level_that_waits_for_the_one_before(submission, checkout):
    assert subprocess.run(["bash", "-n", submission / "submit.sh"]).returncode == 0
    done = submit(submission, checkout, "--nodes=2", "--job-name=a b")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in (checkout / "submitted").read_text().splitlines()]
    arrays = ["--array=1-3%2", "--array=1-2%2", "--array=1-1%2"]
    for depth, words in enumerate(lines):
        after = [f"--dependency=afterany:{100 + depth}"] if depth else []
        assert words == [
            *("--parsable", arrays[depth], *after, "--nodes=2", "--job-name=a b"),
            *("slurm/sweep.sbatch", f"{submission}/base.yaml"),
            *(f"{submission}/slurm/level-{depth}.txt", f"folder={submission}/runs"),
        ]
    assert len(lines) == 3
    assert done.stdout.splitlines()[1] == "job 102;cluster: 2 runs, level 1"


def test_script_is_refused_outside_the_project(submission, tmp_path):
    done = submit(submission, submission.parents[1], folder=tmp_path)
    assert done.returncode == 2 and "is not the project's folder" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
def test_shellcheck_finds_nothing_in_what_is_written(submission):
    done = subprocess.run(["shellcheck", submission / "submit.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def run_task(submission, checkout, depth, task, **variables):
    (checkout / "srun-lines").unlink(missing_ok=True)
    array = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": str(task)}
    return no_slurm.run(
        checkout,
        *("sweep.sbatch", f"{submission}/base.yaml", f"{submission}/slurm/level-{depth}.txt"),
        SWEEP_FOLDER=f"{submission}/runs",
        **{**array, **variables},
    )


def commands(ended):
    return [shlex.split(line.partition("rank.sh ")[2]) for line in ended.started]


def test_task_of_the_first_level_trains_its_recipe(submission, checkout):
    ended = run_task(submission, checkout, 0, 3)
    assert ended.status == 0, ended.output
    assert [words[1] for words in commands(ended)] == ["check", "train"]
    run = submission / "runs" / "slot-weights-1-over-i_seed-1234"
    assert commands(ended)[1][1:] == [
        *("train", f"{submission}/base.yaml", 'tst.slot-weights="1/i"'),
        *("--run-folder", str(run)),
    ]


def test_task_of_a_later_level_makes_its_branch_once_and_trains_it(submission, checkout):
    run_task(submission, checkout, 0, 1)
    trunk, run = (submission / "runs" / f"{name}_seed-1234" for name in ("baseline", "longer-1.5"))
    ended = run_task(submission, checkout, 1, 1)
    assert ended.status == 0, ended.output
    found = commands(ended)
    assert found[0] == [
        *("tst-megatron", "branch", str(trunk), "--step", "30", "--output", str(run)),
        "train-iters=60",
    ]
    assert "--nodes=1 --ntasks=1 " in ended.started[0]
    assert [words[1] for words in found] == ["branch", "check", "train"]
    assert found[2][1:] == ["train", f"{run}/recipe.yaml", "--run-folder", str(run)]
    # Requeued: the branch is there.
    (run / "state.json").unlink()
    again = run_task(submission, checkout, 1, 1)
    assert [words[1] for words in commands(again)] == ["check", "train"]


def test_branch_of_a_run_that_is_not_there_ends_with_the_status_of_its_refusal(
    submission, checkout
):
    ended = run_task(submission, checkout, 1, 2)
    assert ended.status == 2 and "tst_seed-1234: no such run" in ended.output
    assert [words[1] for words in commands(ended)] == ["branch"]


def test_wrong_trunk_of_a_line_is_refused(checkout):
    lines = ["a b@ lr=1", "b @3 lr=1", "c d@03 lr=1", "d a/b@3", "e a@0", "f lr=1 a@3"]
    (checkout / "variants.txt").write_text("\n".join(lines) + "\n")
    array = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1"}
    errors = refused(no_slurm.run(checkout, "sweep.sbatch", RECIPE, "variants.txt", **array))
    assert [re.search(r"line (\d)", error)[1] for error in errors] == list("123456")
    assert all("is not KEY=VALUE" in error for error in errors)


# --- on a real Slurm ------------------------------------------------------------------------------


def test_levels_follow_each_other_on_a_real_cluster(cluster, submission, checkout):
    environment = {
        **cluster.environment,
        "PATH": f"{STUBS}:{cluster.environment['PATH']}",
        "TST_MASTER_ADDR": "127.0.0.1",
        "WATCH_SECONDS": "1",
        "PREFLIGHT": "no",
    }
    said = cluster.run("bash", str(submission / "submit.sh"), cwd=checkout, env=environment)
    jobs = re.findall(r"^job (\d+): ", said, re.MULTILINE)
    assert len(jobs) == 3, said
    logs = lambda: "\n".join(path.read_text() for path in checkout.glob("*.log"))  # noqa: E731
    wait_until(lambda: not {*jobs} & {*cluster.jobs()}, what="all levels", explain=logs)
    plan = read_plan(submission)
    for run in plan.runs:
        state = json.loads((plan.run(run.name) / "state.json").read_text())
        assert state["status"] == "finished", logs()
        assert (plan.run(run.name) / "branch.txt").exists() == (run.trunk is not None)
