"""What a start says at its end: to whom it stopped or finished, and whatever is broken."""

import json
import os
import threading
from pathlib import Path

import pytest
from made_plans import made_facts, made_plan
from status_folders import NUM_STEPS, SWITCH, Folder

from tst_megatron.cli.views.status import _schedule
from tst_megatron.training import summary
from tst_megatron.training.report.facts import write_facts
from tst_megatron.training.report.plan_file import write_plan

RESUME = "tst-megatron train r.yaml --run-folder one"
STOPPED = ("stopped", "asked to stop; a checkpoint was saved")
FINISHED = ("finished", "all steps are done")


def ended(folder, word, reason, step):
    folder.saved(step)
    folder.run.report.mkdir(exist_ok=True)
    state = {"reason": reason, "step": step, "device": "cpu", "exit_status": 0}
    folder.run.write_state(word, **state)
    return folder


def said(folder, say=None):
    lines = []
    summary.end_with_summary(
        *(folder.run, _schedule(folder.run)),
        say=say or lines.append,
        seconds=228.4,
        log=folder.run.log(0),
        resume=RESUME,
    )
    return lines


def test_run_with_a_plan_is_set_beside_it_by_all_of_its_steps(folder):
    folder.steps(1, 600).steps(601, NUM_STEPS, step_seconds=4.0)
    write_plan(folder.run.plan, made_plan())
    write_facts(folder.path / "facts.json", made_facts())
    lines = [" ".join(line.split()) for line in said(ended(folder, *FINISHED, NUM_STEPS))]
    assert "plan as planned, within 10%" in lines
    assert "step time 2 s; planned 2 s (1.6 s to 4 s)" in lines
    assert "time of all steps 46 min 40 s; planned 33 min 20 s" in lines


def test_damaged_plan_takes_nothing_from_the_summary(folder):
    folder.steps(1, NUM_STEPS)
    folder.run.plan.write_text("{")
    lines = said(ended(folder, *FINISHED, NUM_STEPS))
    assert lines[0] == "finished: all steps are done"
    assert not any(line.startswith("plan ") for line in lines)


def test_finished_run_says_what_it_is_and_how_to_export_it(folder):
    folder.steps(1, NUM_STEPS, validation_at=(500, 1000))
    lines = said(ended(folder, *FINISHED, NUM_STEPS))
    path = folder.path
    assert [" ".join(line.split()) for line in lines] == [
        "finished: all steps are done",
        "steps 1,000 of 1,000",
        "raw tokens 1,945,600",
        "bag loss 5.7000 nats at step 300",
        "next-token loss 5.0000 nats at step 1,000",
        "validation loss 4.5000 nats at step 1,000",
        "time 3 min 48 s for this start",
        f"run folder {path}",
        f"checkpoint {path}/checkpoints/iter_0001000",
        f"losses {path}/report/losses.png",
        f"log {path}/logs/rank-0.log",
        f"next tst-megatron export {path} {path}/hf",
    ]
    assert (path / "report" / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert (path / "report" / "summary.txt").read_text().splitlines() == lines


def test_stopped_run_says_how_to_go_on(folder):
    lines = said(ended(folder.steps(1, 120), *STOPPED, 120))
    assert lines[0] == "stopped: asked to stop; a checkpoint was saved"
    words = {" ".join(line.split()) for line in lines}
    assert {"steps 120 of 1,000", "bag loss 5.8800 nats at step 120", f"next {RESUME}"} <= words
    assert not any("next-token" in line or "export" in line for line in lines)


def test_ordinary_run_has_no_bag_loss(tmp_path):
    folder = Folder(tmp_path / "one", phases=((1, NUM_STEPS),)).steps(SWITCH + 1, 400)
    lines = said(ended(folder, *STOPPED, 400))
    assert not any(line.startswith("bag") or "recovery" in line for line in lines)


def broken_picture(folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr(summary, "draw_losses", fail)


def missing_metrics(folder, monkeypatch):
    folder.run.metrics.unlink()


def metrics_of_zeros(folder, monkeypatch):
    folder.run.metrics.write_bytes(b"\0" * 5000)


def no_report_folder(folder, monkeypatch):
    folder.run.report.rmdir()


def file_in_its_place(folder, monkeypatch):
    folder.run.report.rmdir()
    folder.run.report.touch()


def missing_state(folder, monkeypatch):
    folder.run.state_file.unlink()


def strange_numbers(folder, monkeypatch):
    rows = [{"bag size": "x", "lm loss": []}, {"lm loss": 10**400}, {"lm loss": True}]
    with folder.run.metrics.open("a") as file:
        for row in rows:
            file.write(json.dumps({"event": "step", "step": 999, **row}) + "\n")


@pytest.mark.parametrize(
    "fault",
    [
        broken_picture,
        missing_metrics,
        metrics_of_zeros,
        no_report_folder,
        file_in_its_place,
        missing_state,
        strange_numbers,
    ],
)
def test_nothing_that_is_broken_fails_a_run_that_has_done_its_work(folder, monkeypatch, fault):
    ended(folder.steps(1, NUM_STEPS), *FINISHED, NUM_STEPS)
    fault(folder, monkeypatch)
    lines = said(folder)
    has_picture = (folder.path / "report" / "losses.png").exists()
    assert has_picture != any("losses.png: was not drawn: " in line for line in lines)
    assert any(line.startswith("run folder") for line in lines)


def test_export_that_is_there_is_not_named_again(folder):
    (folder.path / "hf").mkdir()
    (folder.path / "hf-2").symlink_to("nowhere")
    assert summary.export_command(folder.run).endswith(f"{folder.path}/hf-3")


def test_command_is_quoted_for_a_shell(tmp_path):
    folder = Folder(tmp_path / "a run")
    assert summary.export_command(folder.run) == (
        f"tst-megatron export '{folder.path}' '{folder.path}/hf'"
    )


def test_run_that_was_finished_before_says_so_briefly_and_has_its_picture(folder):
    ended(folder.steps(990, NUM_STEPS), *FINISHED, NUM_STEPS)
    for _ in range(2):
        lines = []
        summary.say_finished(folder.run, _schedule(folder.run), say=lines.append)
        assert lines[0] == f"{folder.path}: this run is finished."
        assert " ".join(lines[-1].split()).startswith("next tst-megatron export ")
    drawn = os.stat(folder.path / "report" / "losses.png").st_mtime_ns
    summary.say_finished(folder.run, _schedule(folder.run), say=lines.append)
    assert os.stat(folder.path / "report" / "losses.png").st_mtime_ns == drawn


def test_other_ranks_let_the_first_one_finish(folder):
    """Under srun the first rank that ends with a status ends the others."""
    ended(folder.steps(1, 20), *STOPPED, 20)
    first = threading.Timer(0.4, lambda: said(folder))
    first.start()
    summary.wait_for_summary(folder.run)
    assert Path(folder.run.report / "summary.txt").exists()
    first.join()
    folder.run.state_file.touch()
    summary.wait_for_summary(folder.run, seconds=0.2)
