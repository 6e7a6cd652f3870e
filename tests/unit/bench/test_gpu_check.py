"""The GPU lane's own logic, with parts that need no GPU."""

import json
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check
import gpu_parts
from gpu_parts import Machine, Outcome, Part


@pytest.fixture
def machine():
    """This Python as if it had a GPU, without Transformer Engine."""
    found = Machine.__new__(Machine)
    found.python, found.environment, found.engine = Path(sys.executable), {}, None
    found.name, found.torch = "a GPU", "2.11.0"
    return found


def run(machine, tmp_path, code, limit=60.0, **more):
    return machine.run(Part("part", ["-c", code], 1, **more), tmp_path, limit)


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
    assert gpu_parts._tests(log) == [
        "1 passed, 2 skipped in 3s",
        "tests/gpu/test_two_gpus.py:27: needs two",
    ]


def counting(folder, name, status=0, minutes=1.0):
    """A part that notes each time it runs."""
    code = f"import sys; open({str(folder / name)!r}, 'a').write('x'); sys.exit({status})"
    return Part(name, ["-c", code], minutes)


def times(folder, name):
    return len((folder / name).read_text()) if (folder / name).exists() else 0


def test_a_second_call_runs_what_is_left_and_what_failed(machine, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "code", lambda: "one")
    parts = [
        counting(tmp_path, "first"),
        counting(tmp_path, "long", minutes=8),
        counting(tmp_path, "broken", status=1),
    ]
    outcomes = gpu_check.run_parts(machine, parts, tmp_path, end=time.monotonic() + 300)
    assert [each.status for each in outcomes] == ["passed", "not run", "failed"]
    assert "long: 8 minutes are not left" in capsys.readouterr().out
    outcomes = gpu_check.run_parts(machine, parts, tmp_path)
    assert [each.status for each in outcomes] == ["passed", "passed", "failed"]
    assert [times(tmp_path, part.name) for part in parts] == [1, 1, 2]
    # What another call does not run stays on record.
    gpu_check.run_parts(machine, parts[:1], tmp_path, again=True)
    assert times(tmp_path, "first") == 2
    record = json.loads((tmp_path / gpu_check.RECORD).read_text())
    assert (record["device"], record["torch"], record["code"]) == ("a GPU", "2.11.0", "one")
    assert {each["part"] for each in record["parts"]} == {"first", "long", "broken"}


@pytest.mark.parametrize(
    ("name", "value"), [("code", "two"), ("torch", "2.15.0"), ("engine", "2.21")]
)
def test_what_passed_with_other_code_or_other_versions_is_run_again(
    machine, tmp_path, monkeypatch, name, value
):
    monkeypatch.setattr(gpu_check, "code", lambda: "one")
    part = counting(tmp_path, "part")
    gpu_check.run_parts(machine, [part], tmp_path)
    if name == "code":
        monkeypatch.setattr(gpu_check, "code", lambda: value)
    else:
        setattr(machine, name, value)
    gpu_check.run_parts(machine, [part], tmp_path)
    assert times(tmp_path, "part") == 2


def test_parts_fit_into_two_calls_of_ten_minutes_and_the_kernels_come_first(machine, tmp_path):
    machine.overrides, machine.layers_that_fit = [], lambda: 8
    parts = list(gpu_parts.parts_of(machine, tmp_path))
    assert [part.name for part in parts[:3]] == ["kernels", "loss", "step-llama-270m"]
    assert sum(part.minutes for part in parts) <= 20
    assert max(part.minutes for part in parts) <= 5


@pytest.mark.parametrize("name", ["examples/a.yaml", "tools/a.py", "tst_megatron/keys/a.json"])
def test_recipes_and_tools_are_part_of_the_code(tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir(parents=True)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    (tmp_path / name).write_text("1")
    before = gpu_check.code()
    (tmp_path / name).write_text("2")
    assert gpu_check.code() != before


def test_minutes_that_a_part_can_never_fit_are_refused(machine, tmp_path, monkeypatch, capsys):
    machine.overrides, machine.layers_that_fit = [], lambda: 8
    monkeypatch.setattr(gpu_check, "Machine", lambda _: machine)
    given = ["gpu_check.py", "--minutes", "4", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2
    assert "transformer-engine may take 5" in capsys.readouterr().err


def test_the_clock_of_the_minutes_starts_with_the_call(machine, tmp_path, monkeypatch):
    """What making an environment takes is taken from them."""
    monkeypatch.setattr(gpu_check, "parts_of", lambda *_: [counting(tmp_path, "part")])
    now = iter([0.0, 100.0])
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(gpu_check, "Machine", lambda _: machine)
    monkeypatch.setattr(gpu_check.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["x", "--minutes", "2", "--output", str(tmp_path)])
    assert gpu_check.main() == gpu_check.SOME_ARE_LEFT
    assert times(tmp_path, "part") == 0


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
