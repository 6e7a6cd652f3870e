"""What ``tst-megatron status`` prints, refuses and imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from status_folders import NOW, Folder, step_row
from typer.testing import CliRunner

from tst_megatron.checkpoint.run_files import Branch, write_branch
from tst_megatron.cli.app import app, main


def show(*arguments):
    result = CliRunner().invoke(app, ["status", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture
def fixed_time(monkeypatch):
    monkeypatch.setattr("tst_megatron.cli.runs.time.time", lambda: NOW)


def test_one_run_is_shown_in_words(running, fixed_time):
    running.event(9000, 811, "start").event(8000, 811, "end").event(7300, 812, "start")
    code, text = show(running.path)
    assert code == 0
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert {
        "state running: job 812",
        "step 120 of 1,000 (12.0%)",
        "phase superposition, bags of 4; recovery in 180 steps",
        "raw tokens 491.52k of 1.95M",
        "bag loss 5.8800 nats",
        "validation loss 4.5000 nats at step 100",
        "speed 2.05k raw tokens/s, 400.0 TFLOP/s per device, MFU 20.0%",
        "step time 2.000 s",
        "time left 29 min 20 s; ends about 2027-01-15 08:29 UTC",
        "last step 5 s ago",
        "checkpoint step 100; 20 steps are not in it yet",
        "starts 2 (jobs 811, 812), 0 requeues",
        "without progress 1 link in a row",
    } <= lines


def test_branch_is_shown_with_its_trunk(running, tmp_path, fixed_time):
    branch = Branch(
        trunk=Path("/runs/base"),
        trunk_name="base",
        step=40,
        recipe_sha256=None,
        checkpoint_sha256={},
    )
    write_branch(running.path, branch)
    lines = {" ".join(line.split()) for line in show(running.path)[1].splitlines()}
    assert "trunk branch of base at step 40, in /runs/base" in lines
    several = " ".join(show(running.path, Folder(tmp_path / "runs" / "two").path)[1].split())
    assert several.count("branch of base at step 40") == 1
    keys = json.loads(show(running.path, "--json")[1])
    assert (keys["trunk"], keys["steps of trunk"]) == ("/runs/base", 40)


def test_run_without_numbers_is_shown(folder, fixed_time):
    code, text = show(folder.path)
    assert code == 0
    assert "not started" in text and "none" in text and "nan" not in text.lower()


def test_stop_file_is_shown(running, fixed_time):
    assert "STOP" not in show(running.path)[1]
    running.run.stop_file.touch()
    assert "STOP is there" in " ".join(show(running.path)[1].split())


def test_brackets_of_a_reason_are_no_markup(running, fixed_time):
    running.state("failed", "bad [red]value[/nothing]", exit_status=1)
    assert "bad [red]value[/nothing]" in show(running.path)[1]
    assert "bad [red]value[/nothing]" in show(running.path, running.path)[1]


def test_several_runs_are_a_row_each(running, tmp_path, fixed_time):
    other = Folder(tmp_path / "runs" / "two").steps(990, 1000).saved(1000)
    other.state("finished", "all steps are done", exit_status=0)
    code, text = show(running.path, other.path)
    assert code == 0
    rows = [line for line in text.splitlines() if "runs/" in line]
    assert len(rows) == 2
    assert "running" in rows[0] and "120 of 1,000" in rows[0]
    # Two losses that cannot be compared.
    assert "bag loss 5.8800" in rows[0] and " next-token loss 5.0000" in rows[1]
    assert "finished" in rows[1] and "1,000 of 1,000" in rows[1]
    # Which arm is which.
    assert " bags of 4 " in rows[0] and " recovery after bags of 4 " in rows[1]


def test_ordinary_run_has_nothing_to_recover_from(tmp_path, fixed_time):
    ordinary = Folder(tmp_path / "one", phases=((1, 1000),))
    with ordinary.run.metrics.open("w") as file:
        file.write(json.dumps(step_row(900)) + "\n")
    lines = {" ".join(line.split()) for line in show(ordinary.path)[1].splitlines()}
    assert {"phase training", "next-token loss 5.1000 nats"} <= lines
    table = show(ordinary.path, ordinary.path)[1]
    assert " training " in table and "recovery" not in table and "bags" not in table


@pytest.mark.parametrize(
    "part", ["checkpoints", "checkpoints/iter_0000100", "checkpoints/../", "."]
)
def test_checkpoints_lead_to_their_run(running, fixed_time, monkeypatch, part):
    assert "120 of 1,000" in show(running.path / part)[1]
    monkeypatch.chdir(running.path / part)
    assert "120 of 1,000" in show(".")[1]


def test_checkpoints_on_another_file_system_lead_to_their_run(running, tmp_path, fixed_time):
    running.run.checkpoints.rename(tmp_path / "elsewhere")
    running.run.checkpoints.symlink_to(tmp_path / "elsewhere")
    assert "120 of 1,000" in show(running.run.checkpoints)[1]


def test_json_is_one_object_per_run_with_units_in_its_keys(running, tmp_path, fixed_time):
    other = Folder(tmp_path / "runs" / "two")
    code, text = show(running.path, other.path, "--json")
    assert code == 0
    first, second = (json.loads(line) for line in text.splitlines())
    assert list(first) == list(second)
    assert set(first) == {
        *("run", "state", "reason", "exit status", "step", "num steps", "phase", "bag size"),
        *("trunk", "steps of trunk"),
        "bag sizes",
        *("steps to next phase", "next bag size", "raw tokens", "raw tokens of all steps"),
        *("loss name", "loss nats", "validation loss nats", "validation step", "step seconds"),
        *(
            "raw tokens per second",
            "TFLOP/s per device",
            "MFU",
            "seconds left",
            "estimated end utc",
        ),
        *("seconds since last step", "seconds since sign of life", "checkpoint step"),
        *("steps since checkpoint", "num starts", "num requeues", "jobs"),
        *("links without progress", "beside plan", "has stop file", "damaged"),
    }
    assert (first["run"], first["state"]) == (str(running.path), "running")
    assert (first["step seconds"], first["raw tokens per second"]) == (2.0, 2048.0)
    assert (first["seconds left"], first["jobs"]) == (1760.0, [])


@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_json_has_no_number_that_json_does_not_know(running, fixed_time, loss):
    with running.run.metrics.open("a") as file:
        file.write(json.dumps(step_row(121) | {"bag loss": float(loss)}) + "\n")

    def refuse(name):
        raise AssertionError(name)

    (line,) = show(running.path, "--json")[1].splitlines()
    assert json.loads(line, parse_constant=refuse)["loss nats"] is None
    assert f"{loss} nats" in show(running.path)[1]


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_folder_that_is_no_run_is_named_after_those_that_are(
    running, tmp_path, monkeypatch, capsys, flags
):
    (tmp_path / "empty").mkdir()
    names = [running.path, tmp_path / "empty", tmp_path / "absent"]
    monkeypatch.setattr(sys, "argv", ["tst-megatron", "status", *map(str, names), *flags])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert "120" in printed.out
    said = " ".join(printed.err.split())
    assert "empty: is no run (resolved.yaml is missing)" in said
    assert "absent: there is no such folder" in said


@pytest.mark.parametrize("text", ["[1", "lr: 1\n", "null\n", "phases: [[4, x]]\nseq-length: 8\n"])
def test_resolved_recipe_that_says_no_schedule_is_named(folder, text):
    folder.run.resolved.write_text(text)
    with pytest.raises(ValueError, match=r"one: resolved\.yaml says no schedule"):
        folder.status()


def test_status_imports_no_torch(running):
    """It is to answer in a second on a login node."""
    code = (
        "import sys; from tst_megatron.cli.app import app\n"
        f"app(['status', {str(running.path)!r}], standalone_mode=False)\n"
        "print([name for name in ('torch', 'megatron', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "120 of 1,000" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
