"""The GPU lane's own logic, with parts that need no GPU."""

import json
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

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


def test_torch_of_the_machine_and_what_belongs_to_it_is_not_covered_by_wheels(capsys):
    """Whatever uv.lock has that torch asks for, and nothing that only the project does."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    entries = {entry["name"]: entry for entry in lock["package"]}

    def needs_of(start, without):
        waiting, found = [start], set()
        while waiting:
            name = waiting.pop()
            if name in found or name in without:
                continue
            found.add(name)
            entry = entries[name]
            extras = entry.get("optional-dependencies", {}).values()
            rows = [*entry.get("dependencies", []), *(row for rows in extras for row in rows)]
            waiting += [row["name"] for row in rows]
        return found

    left = gpu_check.left_to_the_machine({"torch", "numpy"}, entries)
    assert {"torch", "triton", "numpy", "transformer-engine-torch"} <= left
    libraries = {name for name in needs_of("torch", ()) if name.startswith(("nvidia-", "cuda-"))}
    assert len(libraries) > 10 and libraries <= left
    kept = {name for name in needs_of("tst-megatron", left) if name.startswith("nvidia-")}
    assert "nvidia-modelopt" in kept and not kept & left
    assert needs_of("tst-megatron", set(gpu_check.KEPT)) & left <= {"nvidia-cudnn-frontend"}
    assert "the machine has torch: left out are cuda-bindings, " in capsys.readouterr().out


def test_machine_without_torch_takes_all_wheels_and_one_without_numpy_that():
    assert gpu_check.left_to_the_machine({"numpy"}, ["torch", "numpy", "nvidia-nccl-cu13"]) == set()
    assert gpu_check.left_to_the_machine({"torch"}, ["torch", "numpy"]) == {"torch"}
