"""How a run stands, judged from its state.json and from what the job scripts wrote."""

import json

import pytest
from status_folders import NOW, age

from tst_megatron.checkpoint.run_files import Branch, write_branch
from tst_megatron.cli.views.events import links_without_progress, read_events
from tst_megatron.training.console import duration

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


def branch_of(folder, step):
    branch = Branch(
        trunk=folder.path.parent / "trunk",
        trunk_name="trunk",
        step=step,
        recipe_sha256=None,
        checkpoint_sha256={},
    )
    write_branch(folder.path, branch)


def test_branch_that_has_only_what_its_trunk_left_has_not_started(folder):
    branch_of(folder.steps(1, 400).saved(400), 400)
    assert folder.said() == ("not started", "no start has written state.json")
    status = folder.status()
    assert (status.step, status.steps_of_trunk) == (400, 400)
    assert status.trunk == str(folder.path.parent / "trunk")


@pytest.mark.parametrize("left", ["logs/rank-0.log", "checkpoints/iter_0000500/x"])
def test_branch_that_has_begun_says_so(folder, left):
    branch_of(folder.steps(1, 400).saved(400), 400)
    (folder.path / left).parent.mkdir(exist_ok=True, parents=True)
    (folder.path / left).write_text("")
    assert folder.said()[0] == "unknown"


def test_branch_with_a_damaged_record_is_shown_with_what_is_wrong(folder):
    (folder.steps(1, 400).saved(400).path / "branch.json").write_text("{")
    status = folder.status()
    assert status.trunk is None
    assert status.damaged[0].startswith("branch.json is not JSON")


@pytest.mark.parametrize("left", ["logs/rank-0.log", "logs/rank-7.log", "metrics.jsonl"])
def test_run_that_has_begun_and_says_nothing_is_never_one_that_has_not_started(folder, left):
    (folder.path / left).parent.mkdir(exist_ok=True)
    (folder.path / left).write_text("")
    state, reason = folder.said()
    assert state == "unknown" and "state.json is missing" in reason


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
