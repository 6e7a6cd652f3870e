"""Real training on a real Slurm: from text to evaluation by dependency, and two faults on the way.

The other faults take longer: ``make test-slurm``.
"""

import json
import subprocess
import sys

import pytest
import runs
import task_data
from jobs import names

FAULTS = {"a-signal": runs.ask_to_stop, "a-killed-rank": runs.kill_rank}


@pytest.fixture(scope="module")
def evaluated(prepared):
    """Train, export and evaluate, submitted at once; the job of each."""
    tasks = prepared.folder / "tasks"
    task_data.write_task_data(tasks, "arc_easy")
    train = runs.submit(prepared, runs.UNINTERRUPTED, PREFLIGHT="yes")
    export = prepared.submit(
        *("export.sbatch", f"runs/{runs.UNINTERRUPTED}", "exported"),
        options=[f"--dependency=afterok:{train}"],
    )
    evaluate = prepared.submit(
        *("evaluate.sbatch", "exported", "--", "--tasks", "arc_easy", "--data", "tasks"),
        options=[f"--dependency=afterok:{export}"],
    )
    prepared.ended(train, "COMPLETED")
    return train, export, evaluate


def test_run_goes_through_both_phases_on_two_nodes(prepared, evaluated):
    run = runs.folder(prepared, runs.UNINTERRUPTED)
    assert names(run) == ["start", "end"]
    steps = [row for row in runs.rows(run) if row["event"] == "step"]
    assert [row["bag size"] for row in steps] == [4] * 24 + [1] * 36
    assert steps[-1]["lm loss"] < steps[24]["lm loss"]
    log = prepared.log(evaluated[0])
    assert "No problem found" in log and "│ m2" in log, "the nodes were checked"
    assert {path.name for path in (run / "logs").iterdir()} == {"rank-0.log", "rank-1.log"}
    hosts = [
        json.loads(path.read_text())["host"] for path in run.glob("slurm/preflight-*/rank-*.json")
    ]
    assert sorted(hosts) == ["m1", "m2"]


def test_export_and_evaluation_follow_by_dependency(prepared, evaluated):
    _, export, evaluate = evaluated
    prepared.ended(export, "COMPLETED")
    prepared.ended(evaluate, "COMPLETED")
    found = json.loads((prepared.folder / "exported-evaluation.json").read_text())
    assert "arc_easy" in json.dumps(found)


@pytest.fixture(scope="module")
def changed(prepared, evaluated):
    """The finished run once more, by another recipe."""
    return runs.submit(prepared, runs.UNINTERRUPTED, keys=(*runs.KEYS, "lr=1.0e-4"))


@pytest.fixture(scope="module")
def faults(prepared, changed):
    """Runs to which something has been done; all at once, since most of their time is waiting."""
    keys = {"a-signal": runs.RARE_SAVES}
    jobs = {name: runs.submit(prepared, name, keys=keys.get(name, runs.KEYS)) for name in FAULTS}
    for name, job in jobs.items():
        FAULTS[name](prepared, job, runs.folder(prepared, name))
    return jobs


@pytest.mark.parametrize("name", FAULTS)
def test_run_with_a_fault_ends_as_one_without(prepared, faults, name):
    prepared.ended(faults[name], "COMPLETED")
    run = runs.folder(prepared, name)
    runs.expect_same(prepared, run)
    if name == "a-signal":
        runs.expect_saved_on_request(run)


def test_status_shows_the_starts_of_a_run(prepared, faults):
    run = runs.folder(prepared, "a-killed-rank")
    command = [sys.executable, "-m", "tst_megatron", "status", str(run)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "finished" in shown and "1 requeue" in shown
    assert faults["a-killed-rank"] in shown


def test_finished_run_is_not_finished_for_another_recipe(prepared, changed, faults):
    log = prepared.ended(changed, "FAILED")
    assert prepared.cluster.fact(changed, "ExitCode") == "2:0"
    assert "lr" in log and "Give another RUN_FOLDER" in log
    assert names(runs.folder(prepared, runs.UNINTERRUPTED)) == ["start", "end"]
