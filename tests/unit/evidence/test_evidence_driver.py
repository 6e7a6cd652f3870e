"""The driver of the evidence: what it trains, records and says."""

import importlib
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from evidence.plan import WORK, PlanError, Sweep  # noqa: E402
from evidence.prepared import prepared  # noqa: E402

driver = importlib.import_module("evidence.__main__")
SLEEP = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); time.sleep(600)"
"""A run that saves and ends when it is asked to."""


class FakeRun:
    """A run that is finished when its file is there."""

    def __init__(self, sweep, folder):
        self.sweep, self.folder = sweep, folder
        self.record = driver.ROOT / "results" / sweep.name
        self.is_recorded = False

    @property
    def is_finished(self):
        return self.folder.exists()


@pytest.fixture
def train(tmp_path, monkeypatch):
    """``train({name: source})``: each sweep is one run, trained by a line of Python."""
    monkeypatch.setattr(driver, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(driver, "WORK", tmp_path)
    monkeypatch.setattr(driver, "prepared", lambda text, console: None)
    monkeypatch.setattr(driver, "write_record", lambda run: setattr(run, "is_recorded", True))

    def run(sources, **options):
        sweeps = [Sweep(name=name, about="", recipe="", text="") for name in sources]
        runs = {sweep.name: FakeRun(sweep, tmp_path / f"{sweep.name}.done") for sweep in sweeps}
        monkeypatch.setattr(driver, "runs_of", lambda sweep: [runs[sweep.name]])
        monkeypatch.setattr(
            driver,
            "commands_of",
            lambda sweep, left: [[sys.executable, "-c", sources[sweep.name]]],
        )
        said = io.StringIO()
        status = driver.train(sweeps, Console(file=said, width=200), at_once=1, **options)
        return status, said.getvalue(), [name for name in runs if runs[name].is_recorded]

    run.done = lambda name: f"open({str(tmp_path / name) + '.done'!r}, 'w')"
    return run


def test_what_was_trained_is_recorded_and_a_failure_stops_no_other(train):
    sources = {"one": train.done("one"), "two": "raise SystemExit(1)", "three": train.done("three")}
    status, said, recorded = train(sources)
    assert (status, recorded) == (1, ["one", "three"])
    assert "failed: two. The same command tries again" in said


def test_what_is_trained_already_is_recorded_without_training(train, tmp_path):
    (tmp_path / "one.done").touch()
    assert train({"one": "raise SystemExit(1)"})[::2] == (0, ["one"])


def test_slice_ends_what_trains_and_says_how_to_go_on(train):
    status, said, recorded = train({"one": SLEEP, "two": train.done("two")}, minutes=0.05)
    assert (status, recorded) == (75, [])
    assert "stopped before the end. The same command goes on" in said


def test_run_that_was_asked_to_stop_is_no_failure(train):
    status, said, _ = train({"one": "raise SystemExit(75)"})
    assert status == 75 and "failed" not in said


def test_text_that_a_person_prepares_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match="tst-megatron data prepare TEXTS"):
        prepared("given-8192", Console())
    folder = WORK / "text" / "given-8192"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert prepared("given-8192", Console()) == folder
