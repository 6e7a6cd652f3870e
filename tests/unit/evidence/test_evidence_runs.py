"""The runs of the evidence, and the commands that train those without a record."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from evidence import runs  # noqa: E402
from evidence.plan import Branches, PlanError, Sweep  # noqa: E402

BRANCHES = Branches(
    name="rates",
    about="",
    trunk="one/run",
    step=6,
    text="python-512",
    grid={"lr": [0.001, 0.002]},
)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    for module in (runs, sys.modules["evidence.plan"]):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
    recipe = tmp_path / "results" / "one" / "run" / "recipe.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("seed: 1\n")
    return tmp_path


def words(commands):
    return [command[len(runs.COMMAND) :] for command in commands]


def finish(folder):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"event": "validation", "step": 9}\n')
    state = {"status": "finished", "reason": "", "step": 9, "exit_status": 0}
    (folder / "state.json").write_text(json.dumps(state))


def test_branches_begin_at_a_trunk_that_was_trained_here(places):
    trunk = places / "work" / "sweeps" / "one" / "runs" / "run"
    (trunk / "checkpoints" / "iter_0000006").mkdir(parents=True)
    found = runs.runs_of(BRANCHES)
    assert [run.name for run in found] == ["lr-0.001", "lr-0.002"]
    folder = str(found[0].folder)
    assert words(runs.commands_of(BRANCHES, found[:1])) == [
        ["branch", str(trunk), "lr=0.001", "--step", "6", "--output", folder],
        ["train", f"{folder}/recipe.yaml", "--run-folder", folder],
    ]


def test_trunk_of_another_machine_is_trained_first(places):
    found = runs.runs_of(BRANCHES)
    commands = words(runs.commands_of(BRANCHES, found))
    again = str(places / "work" / "again" / "one" / "run")
    recipe = str(places / "results" / "one" / "run" / "recipe.yaml")
    assert commands[0] == ["train", recipe, "--run-folder", again]
    assert [each[:2] for each in commands[1::2]] == [["branch", again]] * 2


def test_branch_that_has_begun_goes_on(places):
    found = runs.runs_of(BRANCHES)
    found[1].folder.mkdir(parents=True)
    assert [each[0] for each in words(runs.commands_of(BRANCHES, found[1:]))] == ["train"]


def test_state_and_record_decide_what_is_left(places):
    first, second = runs.runs_of(BRANCHES)
    finish(first.folder)
    second.record.mkdir(parents=True)
    (second.record / "recipe.yaml").write_text("seed: 1\n")
    assert (first.is_finished, first.is_recorded) == (True, False)
    assert (second.is_finished, second.is_recorded) == (False, True)


def test_run_that_lacks_its_last_evaluation_is_not_finished(places):
    run, _ = runs.runs_of(BRANCHES)
    finish(run.folder)
    (run.folder / "metrics.jsonl").write_text('{"event": "validation", "step": 8}\n')
    assert not run.is_finished


def test_runs_for_a_gpu_are_recorded_apart(places):
    names = ("gpu-30m", "main")
    sweeps = [Sweep(name=name, about="", recipe="", text="") for name in names]
    found = [runs.Run(sweep=sweep, name="one", folder=places, recipe=places) for sweep in sweeps]
    assert [run.record.parts[-3] for run in found] == ["evidence-gpu", "results"]


def test_trunk_that_is_nowhere_is_asked_for(places):
    recipe = places / "results" / "one" / "run" / "recipe.yaml"
    recipe.unlink()
    with pytest.raises(PlanError, match="its trunk one/run is not recorded. .* --only one"):
        runs.commands_of(BRANCHES, runs.runs_of(BRANCHES))


def test_list_has_the_runs_of_the_plan_and_writes_none(places, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = Sweep(
        name="one",
        about="",
        recipe="evidence/dense.yaml",
        text="python-512",
        arms=["baseline", "tst", "recovery-only"],
        grid={"tst.bag-size": [2, 4]},
        seeds=2,
    )
    found = runs.listed(sweep)
    assert not sweep.folder.exists()
    planned = runs.runs_of(sweep)
    # A plan has a run after its trunk.
    by_name = {run.name: run for run in found}
    assert by_name == {run.name: run for run in planned} and len(found) == 8


def test_sweep_that_is_refused_says_why(places, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = Sweep(
        name="one", about="", recipe="evidence/dense.yaml", text="python-512", keys={"seed": "no"}
    )
    with pytest.raises(PlanError, match="^one: "):
        runs.runs_of(sweep)
