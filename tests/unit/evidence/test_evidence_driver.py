"""The driver of the evidence: what it trains, records and says."""

import io
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from evidence import training  # noqa: E402
from evidence.plan import WORK, PlanError, Sweep  # noqa: E402
from evidence.prepared import prepared  # noqa: E402

SAVES = (
    "import pathlib, signal, sys, time\n"
    "signal.signal(15, lambda *_: sys.exit(75))\n"
    "pathlib.Path(r'{ready}').touch()\n"
    "time.sleep(600)"
)
"""A run that saves and ends when it is asked to."""


class FakeRun:
    """A run that is finished when its file is there."""

    def __init__(self, sweep, folder):
        self.sweep, self.folder = sweep, folder
        self.record = training.ROOT / "results" / sweep.name
        self.is_recorded = False

    @property
    def is_finished(self):
        return self.folder.exists()


@pytest.fixture
def train(tmp_path, monkeypatch):
    """``train({name: sources})``: each sweep is one run, trained by lines of Python in turn."""
    monkeypatch.setattr(training, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(training, "WORK", tmp_path)
    monkeypatch.setattr(training, "prepared", lambda text, console: None)
    monkeypatch.setattr(training, "write_record", lambda run: setattr(run, "is_recorded", True))

    def run(sources, **options):
        sweeps = [Sweep(name=name, about="", recipe="", text="") for name in sources]
        runs = {sweep.name: FakeRun(sweep, tmp_path / f"{sweep.name}.done") for sweep in sweeps}
        monkeypatch.setattr(training, "runs_of", lambda sweep: [runs[sweep.name]])
        monkeypatch.setattr(
            training,
            "commands_of",
            lambda sweep, left: [[sys.executable, "-c", each] for each in sources[sweep.name]],
        )
        said = io.StringIO()
        console = Console(file=said, width=200)
        status = training.Training(sweeps, console, at_once=1, **options).run()
        return status, said.getvalue(), [name for name in runs if runs[name].is_recorded]

    run.done = lambda name: f"open({str(tmp_path / name) + '.done'!r}, 'w')"
    return run


@pytest.fixture
def until_ready(tmp_path, monkeypatch):
    """A slice ends when the run has begun, however long that takes; gives the run's source."""
    ready = tmp_path / "ready"
    clock = time.monotonic
    monkeypatch.setattr(
        training.time, "monotonic", lambda: clock() + (10_000 if ready.exists() else 0)
    )
    return SAVES.format(ready=ready)


def test_what_was_trained_is_recorded_and_a_failure_stops_no_other(train):
    failing = ["raise SystemExit(1)"]
    status, said, recorded = train(
        {"one": [train.done("one")], "two": failing, "three": [train.done("three")]}
    )
    assert (status, recorded) == (1, ["one", "three"])
    assert "failed: two. The same command tries again" in said


def test_what_is_trained_already_is_recorded_without_training(train, tmp_path):
    (tmp_path / "one.done").touch()
    assert train({"one": ["raise SystemExit(1)"]})[::2] == (0, ["one"])


def test_slice_ends_what_trains_and_says_how_to_go_on(train, until_ready):
    status, said, recorded = train({"one": [until_ready], "two": [train.done("two")]}, minutes=60)
    assert (status, recorded) == (75, [])
    assert "stopped before the end. The same command goes on" in said


def test_sweep_that_a_slice_ends_by_the_signal_is_no_failure(train, until_ready):
    # A sweep that still checks its recipes has no handler yet.
    source = until_ready.replace("lambda *_: sys.exit(75)", "signal.SIG_DFL")
    status, said, _ = train({"one": [source]}, minutes=60)
    assert status == 75 and "failed" not in said


def test_slice_that_ends_between_two_commands_is_not_finished(train, until_ready):
    source = until_ready.replace("time.sleep(600)", "")
    status, _, recorded = train({"one": [source, SAVES.format(ready="/dev/null")]}, minutes=60)
    assert (status, recorded) == (75, [])


def test_run_that_was_asked_to_stop_is_no_failure(train):
    status, said, _ = train({"one": ["raise SystemExit(75)"]})
    assert status == 75 and "failed" not in said


def test_run_without_its_last_evaluation_is_a_failure_that_says_what_to_do(train, monkeypatch):
    monkeypatch.setattr(training, "is_finished", lambda folder: True)
    status, said, recorded = train({"one": ["pass"]})
    assert (status, recorded) == (1, [])
    assert "was stopped in its last evaluation" in said and "Delete the folder" in said


def test_text_that_a_person_prepares_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match="tst-megatron data prepare TEXTS"):
        prepared("given-8192", Console())
    folder = WORK / "text" / "given-8192"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert prepared("given-8192", Console()) == folder
