"""What ``tst-megatron status`` says of made-up run folders."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tst_megatron.cli import app, main
from tst_megatron.report.events import links_without_progress, read_events
from tst_megatron.report.run_state import duration
from tst_megatron.report.status import run_status
from tst_megatron.training.record import read_newest
from tst_megatron.training.run_folder import STARTED, RunFolder

NOW = 1_800_000_000.0
"""2027-01-15T08:00:00Z."""
NUM_STEPS, SWITCH = 1000, 300
RAW_TOKENS_PER_STEP = 16 * 64
"""In recovery; four times that in superposition."""


class Folder:
    """A run folder as a run leaves it: bags of 4 for 300 of 1,000 steps, 2 seconds each."""

    def __init__(self, path, phases=((4, SWITCH), (1, NUM_STEPS - SWITCH)), **keys):
        self.path = path
        self.run = RunFolder(path)
        path.mkdir(parents=True)
        resolved = {
            "train-iters": NUM_STEPS,
            "seq-length": 64,
            "global-batch-size": 16,
            "tst": {"inputs": "bags", "targets": "bags"},
            "phases": [list(phase) for phase in phases],
            **keys,
        }
        self.run.resolved.write_text(yaml.safe_dump(resolved))

    def steps(self, first, last, *, age_seconds=5.0, step_seconds=2.0, validation_at=()):
        with self.run.metrics.open("a") as file:
            for step in range(first, last + 1):
                file.write(json.dumps(step_row(step, step_seconds)) + "\n")
                if step in validation_at:
                    row = {"event": "validation", "step": step, "lm loss validation": 4.5}
                    file.write(json.dumps(row) + "\n")
        age(self.run.metrics, age_seconds)
        return self

    def state(self, status, reason, *, exit_status, age_seconds=7200.0):
        self.run.write_state(status, reason=reason, step=0, device="cpu", exit_status=exit_status)
        age(self.run.state_file, age_seconds)
        return self

    def started(self, *, age_seconds=7200.0):
        return self.state("failed", STARTED, exit_status=1, age_seconds=age_seconds)

    def saved(self, step):
        (self.run.checkpoints / f"iter_{step:07d}").mkdir(parents=True, exist_ok=True)
        (self.run.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))
        return self

    def event(self, age_seconds, job, name, step=0, text=""):
        self.run.slurm.mkdir(exist_ok=True)
        with (self.run.slurm / "events.tsv").open("a") as file:
            file.write(f"{utc(NOW - age_seconds)}\t{job}\t{name}\t{step}\t{text}\n")
        return self

    def status(self):
        return run_status(self.path, now=NOW)

    def said(self):
        status = self.status()
        return status.state, status.reason


def utc(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def age(path, seconds):
    os.utime(path, (NOW - seconds, NOW - seconds))


def step_row(step, step_seconds=2.0):
    bag_size = 4 if step <= SWITCH else 1
    return {
        "event": "step",
        "step": step,
        "phase": "superposition" if bag_size > 1 else "recovery",
        "bag loss" if bag_size > 1 else "lm loss": 6.0 - step / 1000,
        "bag size": bag_size,
        "raw tokens per second": RAW_TOKENS_PER_STEP * bag_size / step_seconds,
        "TFLOP/s per device": 800.0 / step_seconds,
        "step seconds": step_seconds,
        "device": "cpu",
    }


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "runs" / "one")


@pytest.fixture
def running(folder):
    """In superposition, with a checkpoint that lacks 20 steps."""
    return folder.steps(1, 120, validation_at=(50, 100)).started().saved(100)


LONG_PAST = (json.dumps(step_row(1)).encode() + b"\n") * 150_000
"""About 30 MB of steps."""


# --- numbers --------------------------------------------------------------------------------------


def test_run_in_superposition_says_how_far_it_is_and_when_the_switch_comes(running):
    status = running.status()
    assert (status.state, status.reason) == ("running", "")
    assert (status.step, status.num_steps) == (120, 1000)
    assert (status.phase, status.bag_size) == ("superposition", 4)
    assert (status.steps_to_next_phase, status.next_bag_size) == (180, 1)
    assert status.raw_tokens == 120 * 4 * RAW_TOKENS_PER_STEP
    assert status.raw_tokens_of_all_steps == (300 * 4 + 700) * RAW_TOKENS_PER_STEP
    assert (status.loss_name, status.loss_nats) == ("bag loss", 6.0 - 0.12)
    assert (status.validation_loss_nats, status.validation_step) == (4.5, 100)
    assert status.step_seconds == 2.0
    assert status.raw_tokens_per_second == 4 * RAW_TOKENS_PER_STEP / 2.0
    assert status.teraflops_per_device == 400.0
    assert status.seconds_left == 880 * 2.0
    assert status.estimated_end_utc == utc(NOW + 1760)
    assert status.seconds_since_last_step == 5.0
    assert (status.checkpoint_step, status.steps_since_checkpoint) == (100, 20)
    assert (status.num_starts, status.num_requeues, status.jobs) == (0, 0, ())


def test_run_in_recovery_has_no_switch_before_it(folder):
    status = folder.steps(281, 340).started().status()
    assert (status.phase, status.bag_size) == ("recovery", 1)
    assert (status.steps_to_next_phase, status.next_bag_size) == (None, None)
    assert status.raw_tokens == (300 * 4 + 40) * RAW_TOKENS_PER_STEP
    assert (status.loss_name, status.loss_nats) == ("lm loss", 6.0 - 0.34)
    assert status.raw_tokens_per_second == RAW_TOKENS_PER_STEP / 2.0
    assert status.validation_loss_nats is None
    assert (status.checkpoint_step, status.steps_since_checkpoint) == (None, 340)


def test_last_step_of_superposition_is_still_of_it(folder):
    status = folder.steps(299, 300).started().status()
    assert (status.phase, status.steps_to_next_phase) == ("superposition", 0)
    assert status.loss_name == "bag loss"


def test_next_of_three_phases_may_have_bags_too(tmp_path):
    folder = Folder(tmp_path / "three", phases=((4, 300), (2, 200), (1, 500)))
    status = folder.steps(1, 10).started().status()
    assert (status.steps_to_next_phase, status.next_bag_size) == (290, 2)


def test_inputs_of_one_token_read_no_more_than_ordinary_training(tmp_path):
    folder = Folder(tmp_path / "tokens", tst={"inputs": "tokens", "targets": "bags"})
    status = folder.steps(1, 10).started().status()
    assert status.raw_tokens == 10 * RAW_TOKENS_PER_STEP
    assert status.raw_tokens_per_second == RAW_TOKENS_PER_STEP / 2.0


def test_speed_is_the_median_of_the_last_50_steps(folder):
    folder.steps(1, 100, step_seconds=9.0)
    folder.steps(101, 126, step_seconds=3.0)
    folder.steps(127, 127, step_seconds=500.0)
    status = folder.started().status()
    assert (status.step_seconds, status.seconds_left) == (3.0, 873 * 3.0)
    assert status.teraflops_per_device == pytest.approx(800 / 3)


def test_torn_last_line_is_no_step(running):
    with running.run.metrics.open("ab") as file:
        file.write(b'{"event": "step", "step": 121, "phase": "sup\xc3')
    assert running.status().step == 120


@pytest.mark.parametrize("line", ["12", "null", "\x00\x00", '{"event": "step"}', ""])
def test_line_that_holds_no_row_is_passed_over(running, line):
    with running.run.metrics.open("a") as file:
        file.write(line + "\n")
    running.steps(121, 121)
    assert running.status().step == 121


def test_run_without_metrics_has_the_step_of_its_checkpoint_and_no_numbers(folder):
    status = folder.started(age_seconds=30).status()
    assert (status.state, status.step, status.raw_tokens) == ("running", 0, 0)
    assert (status.loss_name, status.loss_nats, status.step_seconds) == (None, None, None)
    assert (status.seconds_left, status.estimated_end_utc) == (None, None)
    assert status.seconds_since_last_step is None
    assert folder.saved(40).status().step == 40


def test_empty_metrics_are_no_step(folder):
    folder.run.metrics.touch()
    assert folder.started(age_seconds=30).status().step == 0


def test_huge_file_is_read_from_its_end(folder):
    folder.run.metrics.write_bytes(LONG_PAST)
    folder.steps(200, 260, validation_at=(205,)).started()
    before = bytes_read()
    status = folder.status()
    assert (status.step, status.validation_step) == (260, 205)
    assert bytes_read() - before < 1 << 20


def test_search_for_a_validation_ends_too(folder):
    folder.run.metrics.write_bytes(LONG_PAST)
    folder.steps(200, 260)
    before = bytes_read()
    steps, validation = read_newest(folder.run.metrics, num_steps=50)
    assert [row["step"] for row in steps] == list(range(211, 261))
    assert validation is None
    assert bytes_read() - before < 9 << 20 < len(LONG_PAST)


def test_rows_that_stand_across_blocks_are_whole(folder):
    """Against the whole file, with blocks that end inside of lines."""
    folder.steps(1, 400, validation_at=(7,))
    assert folder.run.metrics.stat().st_size > 1 << 16
    steps, validation = read_newest(folder.run.metrics, num_steps=1000)
    assert steps == [step_row(step) for step in range(1, 401)]
    assert validation["step"] == 7


def bytes_read():
    """All that this process has read so far, from files of any kind."""
    (line,) = (
        line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")
    )
    return int(line.split()[1])


# --- how it stands, by state.json alone -----------------------------------------------------------


def test_finished_run_is_finished(folder):
    folder.steps(990, 1000, age_seconds=86400).saved(1000)
    status = folder.state("finished", "all steps are done", exit_status=0).status()
    assert (status.state, status.reason) == ("finished", "all steps are done")
    assert (status.exit_status, status.steps_since_checkpoint) == (0, 0)
    assert (status.seconds_left, status.estimated_end_utc) == (0.0, None)


def test_stopped_run_says_why_and_how_long_the_rest_takes(running):
    running.state("stopped", "asked to stop; a checkpoint was saved", exit_status=75)
    assert running.said() == ("stopped", "asked to stop; a checkpoint was saved")
    assert running.status().seconds_left == 1760.0
    assert running.status().estimated_end_utc is None


def test_failed_run_says_why(running):
    running.state("failed", "rank 3: OSError(28, 'No space left')", exit_status=1)
    assert running.said() == ("failed", "rank 3: OSError(28, 'No space left')")


def test_failure_that_no_restart_helps_says_so(running):
    running.state("failed", "loss is NaN", exit_status=93)
    assert running.said() == ("failed", "loss is NaN (not to be restarted)")


def test_run_of_a_version_that_wrote_no_exit_status_is_shown(running):
    state = running.run.state()
    del state["exit_status"]
    running.run.state_file.write_text(json.dumps(state))
    assert running.status().exit_status is None


def test_run_that_was_only_prepared_has_not_started(folder):
    assert folder.said() == ("not started", "no start has written state.json")


@pytest.mark.parametrize(
    ("step_seconds", "age_seconds", "state"),
    [
        (2.0, 1790.0, "running"),
        (2.0, 1810.0, "no sign of life"),
        (600.0, 2990.0, "running"),
        (600.0, 3010.0, "no sign of life"),
    ],
)
def test_no_sign_of_life_for_half_an_hour_or_five_steps(folder, step_seconds, age_seconds, state):
    folder.steps(1, 60, age_seconds=age_seconds, step_seconds=step_seconds).started()
    assert folder.status().state == state
    assert folder.status().seconds_since_sign_of_life == age_seconds


def test_start_is_a_sign_of_life_while_metrics_are_old(running):
    age(running.run.metrics, 86400)
    assert running.started(age_seconds=60).status().state == "running"


def test_clock_of_the_file_system_that_is_ahead_gives_no_negative_age(running):
    age(running.run.metrics, -3.0)
    assert running.status().seconds_since_last_step == 0.0


# --- how it stands, with what the job scripts wrote -----------------------------------------------


def test_job_that_runs_is_named(running):
    running.event(7300, 811, "start")
    assert running.said() == ("running", "job 811")


def test_job_whose_node_died_is_named(running):
    age(running.run.metrics, 11520)
    running.event(90000, 811, "start")
    assert running.started(age_seconds=89000).said() == (
        "no sign of life",
        "for 3 h 12 min: job 811 started, and has said nothing since",
    )


def test_start_that_has_not_got_to_training_yet_is_running(running):
    """``state.json`` is of the start before."""
    running.state("stopped", "asked to stop", exit_status=75, age_seconds=900)
    age(running.run.metrics, 1000)
    running.event(5000, 811, "start").event(800, 811, "requeue", 100).event(60, 811, "start", 100)
    assert running.said() == ("running", "job 811")


def test_run_that_has_said_how_it_ended_is_believed_before_the_job_ends(running):
    running.event(5000, 811, "start")
    running.state("failed", "rank 0: KeyError('x')", exit_status=1, age_seconds=20)
    assert running.said() == ("failed", "rank 0: KeyError('x')")


def test_start_that_slurm_itself_repeats_is_a_requeue(running):
    """After the death of a node no script writes a word."""
    running.event(90000, 811, "start").event(10, 811, "start", 60)
    assert running.status().num_requeues == 1


def test_requeued_run_waits_for_the_next_start(running):
    running.event(90000, 811, "start").event(50000, 811, "requeue", 60, "time limit")
    running.event(40000, 811, "start", 60).event(30, 811, "end", 100, "status 75")
    running.event(29, 811, "requeue", 100, "time limit")
    running.state("stopped", "asked to stop", exit_status=75, age_seconds=40)
    status = running.status()
    assert (status.state, status.reason) == (
        "waiting for the next start",
        "time limit; the last one: stopped, asked to stop",
    )
    assert (status.num_starts, status.num_requeues, status.jobs) == (2, 2, ("811",))
    assert status.links_without_progress == 0
    assert status.estimated_end_utc is None


def test_requeue_without_a_word_tells_how_the_last_start_ended(running):
    running.event(90000, 811, "start").event(29, 811, "requeue")
    assert running.said() == (
        "waiting for the next start",
        "the last one: started, and ended without saying how",
    )


def test_job_that_ended_while_training_had_said_nothing_has_failed(running):
    running.event(7300, 811, "start").event(10, 811, "end", 100, "status 137")
    assert running.said() == ("failed", "started, and ended without saying how (status 137)")


def test_job_that_ended_before_training_began_has_failed(running):
    """A recipe that is refused, say: ``state.json`` is of the start before."""
    running.state("stopped", "asked to stop", exit_status=75, age_seconds=7200)
    running.event(7000, 812, "start", 100).event(6990, 812, "end", 100, "status 2")
    assert running.said() == ("failed", "job 812 ended before training began (status 2)")


def test_chain_that_gave_up_has_failed(running):
    running.event(7300, 811, "start").event(9, 811, "end").event(8, 811, "give-up", 0, "3 hangs")
    running.state("stopped", "hung", exit_status=75, age_seconds=10)
    assert running.said() == ("failed", "job 811 gave up: 3 hangs")


def test_stop_file_that_ended_the_chain_has_stopped_it(running):
    running.run.stop_file.touch()
    running.event(7300, 811, "start").event(9, 811, "end").event(8, 811, "stop-file", 100)
    running.state("stopped", "asked to stop", exit_status=75, age_seconds=10)
    assert running.said() == ("stopped", "by the file STOP; take it away to go on")
    assert running.status().has_stop_file


def test_stop_file_that_a_run_has_not_obeyed_yet_leaves_it_running(running):
    running.event(7300, 811, "start").event(3, 811, "stop-file", 100)
    assert running.status().state == "running"


def test_start_by_hand_after_the_last_job_is_no_jobs(running):
    running.event(90000, 811, "start").event(80000, 811, "requeue").event(79000, 811, "end")
    assert running.said() == ("running", "")
    age(running.run.metrics, 7200)
    assert running.said() == ("no sign of life", "for 2 h: the run has said nothing since")


@pytest.mark.parametrize("name", ["hang", "sick", "a newer event"])
def test_event_in_between_decides_nothing(running, name):
    running.event(7300, 811, "start").event(20, 811, name, 100, "node7")
    assert running.status().state == "running"


def test_finished_run_is_finished_whatever_the_chain_says(folder):
    folder.steps(990, 1000).saved(1000).state("finished", "all steps are done", exit_status=0)
    folder.event(9000, 811, "start", 900).event(20, 811, "requeue", 1000)
    assert folder.status().state == "finished"


# --- events ---------------------------------------------------------------------------------------


def test_events_that_are_torn_are_passed_over(folder):
    folder.event(90, 811, "start", 5, "a\ttab")
    with (folder.run.slurm / "events.tsv").open("a") as file:
        file.write("\nyesterday\t811\tend\t5\t\n2027-01-15T08:00:00Z\t811\n")
        file.write("2027-01-15T08:00:00Z\t811\tend\t\t\n2027-01-15T08:00")
    events = read_events(folder.run.slurm / "events.tsv")
    assert [(event.name, event.step, event.text) for event in events] == [
        ("start", 5, "a\ttab"),
        ("end", None, ""),
    ]
    assert (events[0].time, events[1].time) == (NOW - 90, NOW)
    assert read_events(folder.run.slurm / "none.tsv") == []


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([("start", 0), ("end", 50), ("start", 50)], 0),
        ([("start", 0), ("end", 50), ("start", 50), ("end", 50)], 1),
        ([("start", 0), ("requeue", 0), ("start", 0), ("requeue", 0), ("start", 0)], 2),
        ([("start", 0), ("end", 0), ("start", 0), ("end", 9), ("requeue", 9)], 0),
        # A node that died wrote no end.
        ([("start", 4), ("start", 4), ("start", 4), ("hang", 4)], 2),
        ([("start", 4), ("start", 8)], 0),
        ([("sick", 0), ("start", None), ("end", None)], 0),
        ([], 0),
    ],
)
def test_links_without_progress_are_those_in_a_row_that_saved_nothing(folder, events, count):
    for name, step in events:
        folder.event(100, 811, name, "" if step is None else step)
    found = read_events(folder.run.slurm / "events.tsv") if events else []
    assert links_without_progress(found) == count


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.6, "1 min"),
        (3599, "59 min 59 s"),
        (3605, "1 h"),
        (90000, "1 d 1 h"),
        (8640000, "100 d"),
    ],
)
def test_duration_has_its_two_largest_units(seconds, words):
    assert duration(seconds) == words


# --- the command ----------------------------------------------------------------------------------


def show(*arguments):
    result = CliRunner().invoke(app, ["status", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture
def fixed_time(monkeypatch):
    monkeypatch.setattr("tst_megatron.commands.status.time.time", lambda: NOW)


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
        "speed 2.05k raw tokens/s, 400.0 TFLOP/s per device",
        "step time 2.000 s",
        "time left 29 min 20 s; ends about 2027-01-15 08:29 UTC",
        "last step 5 s ago",
        "checkpoint step 100; 20 steps are not in it yet",
        "starts 2 (jobs 811, 812), 0 requeues",
        "without progress 1 link in a row",
    } <= lines


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
    assert "bag loss 5.8800" in rows[0] and " lm loss 5.0000" in rows[1]
    assert "finished" in rows[1] and "1,000 of 1,000" in rows[1]


def test_json_is_one_object_per_run_with_units_in_its_keys(running, tmp_path, fixed_time):
    other = Folder(tmp_path / "runs" / "two")
    code, text = show(running.path, other.path, "--json")
    assert code == 0
    first, second = (json.loads(line) for line in text.splitlines())
    assert list(first) == list(second)
    assert set(first) == {
        *("run", "state", "reason", "exit status", "step", "num steps", "phase", "bag size"),
        *("steps to next phase", "next bag size", "raw tokens", "raw tokens of all steps"),
        *("loss name", "loss nats", "validation loss nats", "validation step", "step seconds"),
        *("raw tokens per second", "TFLOP/s per device", "seconds left", "estimated end utc"),
        *("seconds since last step", "seconds since sign of life", "checkpoint step"),
        *("steps since checkpoint", "num starts", "num requeues", "jobs"),
        *("links without progress", "has stop file"),
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
        "import sys; from tst_megatron.cli import app\n"
        f"app(['status', {str(running.path)!r}], standalone_mode=False)\n"
        "print([name for name in ('torch', 'megatron', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "120 of 1,000" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
