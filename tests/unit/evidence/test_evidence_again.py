"""A run that was trained again is compared with its record, digit by digit."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from evidence import again, plan, runs  # noqa: E402
from evidence.plan import Branches, PlanError, Sweep  # noqa: E402

SWEEPS = [
    Sweep(name="map", about="", recipe="", text=""),
    Branches(name="rates", about="", trunk="map/run", step=7, text="", grid={"lr": [1, 2]}),
]
ROWS = [
    {"event": "step", "step": 1, "bag loss": 6.25, "grad-norm": 1.5, "step seconds": 0.1},
    {"event": "step", "step": 50, "lm loss": 5.5, "grad-norm": 0.5, "step seconds": 0.1},
    {"event": "validation", "step": 50, "lm loss validation": 5.25},
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """``trained(rows)``: compare a record of ROWS with a run that gives other rows."""
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    for module in (again, plan):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
    monkeypatch.setattr(again, "prepared", lambda text, console: None)
    record = tmp_path / "results" / "map" / "run"
    write(record / "metrics.jsonl", ROWS)
    (record / "recipe.yaml").write_text("seed: 1\n")

    def compare(rows, status=0):
        def train(command, **_):
            assert command[-3:-1] == [str(record / "recipe.yaml"), "--run-folder"]
            write(Path(command[-1]) / "metrics.jsonl", rows)
            return subprocess.CompletedProcess(command, status)

        monkeypatch.setattr(subprocess, "run", train)
        said = io.StringIO()
        return again.train_again("map/run", SWEEPS, Console(file=said, width=200)), said.getvalue()

    return compare


def test_equal_digits_are_equal_whatever_else_differs(trained):
    # The record keeps fewer rows than the run.
    between = {"event": "step", "step": 2, "bag loss": 6.0, "grad-norm": 1.0}
    rows = [ROWS[0] | {"step seconds": 9.0}, between, *ROWS[1:]]
    assert trained(rows) == (0, "map/run: 5 numbers compared, 0 differ\n")


@pytest.mark.parametrize("name", ["lm loss", "grad-norm"])
def test_last_digit_of_every_number_counts(trained, name):
    rows = [ROWS[0], ROWS[1] | {name: ROWS[1][name] + 1e-15}, ROWS[2]]
    status, said = trained(rows)
    assert status == 1 and "5 numbers compared, 1 differ" in said and name in said


def test_row_that_is_missing_differs(trained):
    status, said = trained(ROWS[:2])
    assert status == 1 and "1 differ" in said


def test_record_that_is_not_there_is_named(trained):
    with pytest.raises(PlanError, match="--again map/none"):
        again.train_again("map/none", SWEEPS, Console())


def test_training_that_fails_is_said(trained):
    with pytest.raises(PlanError, match="--again map/run: train ended with 1"):
        trained(ROWS, status=1)


def test_record_without_numbers_shows_nothing(trained, tmp_path):
    write(tmp_path / "results" / "map" / "run" / "metrics.jsonl", [])
    assert trained(ROWS)[0] == 1


def test_branch_is_trained_on_its_trunk(trained, tmp_path, monkeypatch):
    record = tmp_path / "results" / "rates" / "lr-2"
    write(record / "metrics.jsonl", ROWS)
    (record / "recipe.yaml").write_text("seed: 1\n")
    words = []

    def run(command, **_):
        words.append(command[3:])
        if command[3] == "train":
            write(Path(command[-1]) / "metrics.jsonl", ROWS)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert again.train_again("rates/lr-2", SWEEPS, Console(file=io.StringIO())) == 0
    folder = tmp_path / "work" / "again"
    trunk, branch = folder / "map" / "run", folder / "rates" / "lr-2"
    recipe = tmp_path / "results" / "map" / "run" / "recipe.yaml"
    assert words == [
        ["train", str(recipe), "--run-folder", str(trunk)],
        ["branch", str(trunk), "lr=2", "--step", "7", "--output", str(branch)],
        ["train", str(record / "recipe.yaml"), "--run-folder", str(branch)],
    ]
