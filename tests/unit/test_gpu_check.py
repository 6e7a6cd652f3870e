"""The GPU lane's own logic, with parts that need no GPU."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import gpu_check
from gpu_check import Machine, Outcome, Part


@pytest.fixture
def machine():
    """This Python as if it had a GPU, without Transformer Engine."""
    found = Machine.__new__(Machine)
    found.python, found.environment, found.has_engine = Path(sys.executable), {}, False
    return found


def run(machine, tmp_path, code, limit=60.0, **more):
    return machine.run(Part("part", ["-c", code], **more), tmp_path, limit)


def test_part_that_ends_well_has_passed_and_leaves_its_log(machine, tmp_path):
    outcome = run(machine, tmp_path, "print('3 passed, 1 skipped in 2.00s')")
    assert (outcome.status, outcome.facts) == ("passed", ["3 passed, 1 skipped in 2.00s"])
    assert (tmp_path / "part.log").read_text() == "3 passed, 1 skipped in 2.00s\n"


def test_part_that_fails_says_where_and_with_what(machine, tmp_path):
    outcome = run(machine, tmp_path, "raise SystemExit('no such kernel')")
    assert outcome.status == "failed"
    assert outcome.facts == ["see part.log: no such kernel"]


def test_part_that_hangs_is_ended_with_its_children(machine, tmp_path):
    sleeps = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{sleeps}'])"
    outcome = run(machine, tmp_path, code, limit=1.0)
    assert outcome.status == "timed out" and outcome.seconds < 30


def test_part_without_transformer_engine_is_skipped_and_says_so(machine, tmp_path):
    outcome = run(machine, tmp_path, "1 / 0", needs_transformer_engine=True)
    assert (outcome.status, outcome.facts) == ("skipped", ["Transformer Engine is not installed"])


def test_slice_that_does_not_fit_is_tried_with_a_layer_less(machine, tmp_path):
    code = (
        "import sys; layers = int(sys.argv[1].partition('=')[2]); "
        "sys.exit('CUDA out of memory' if layers > 3 else 0)"
    )
    assert run(machine, tmp_path, code, num_layers=5).status == "passed"
    assert run(machine, tmp_path, code, num_layers=9).status == "failed", "four attempts"
    # Another failure is no reason to try again.
    other = "import sys; sys.exit('wrong shape')"
    assert run(machine, tmp_path, other, num_layers=5).status == "failed"


def test_comparison_is_told_in_a_line(machine, tmp_path):
    timings = [
        {"name": "K = 1", "ratio": {"median": 1.0}},
        {"name": "K = 16", "ratio": {"median": 1.0123}},
        {"name": "absent", "ratio": None},
    ]
    case = {"title": "a model", "notes": {"peak memory": "x1.01"}, "timings": timings}
    (tmp_path / "step.json").write_text(json.dumps({"baseline": "K = 1", "cases": [case]}))
    outcome = run(machine, tmp_path, "pass", results=["step.json", "other.json"])
    assert outcome.facts == [
        "a model: peak memory x1.01",
        "a model, by K = 1: K = 16 x1.012",
        "other.json was not written",
    ]


def test_skips_of_tests_are_named():
    log = (
        "SKIPPED [2] tests/gpu/test_two_gpus.py:27: needs two\n=== 1 passed, 2 skipped in 3s ===\n"
    )
    assert gpu_check._tests(log) == [
        "1 passed, 2 skipped in 3s",
        "tests/gpu/test_two_gpus.py:27: needs two",
    ]


def test_one_table_of_all_parts():
    outcomes = [Outcome("kernels", "passed", 12.3, ["a", "b|c"]), Outcome("loss", "failed", 1.0)]
    assert gpu_check.table(outcomes).splitlines()[2:] == [
        "| kernels | passed | 12 | a<br>b/c |",
        "| loss | failed | 1 |  |",
    ]
