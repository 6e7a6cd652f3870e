"""The numbers that ``tst-megatron status`` says of made-up run folders."""

import json
from pathlib import Path

import pytest
from status_folders import NOW, RAW_TOKENS_PER_STEP, Folder, step_row, utc

from tst_megatron.training.report.metrics_file import read_newest

LONG_PAST = (json.dumps(step_row(1)).encode() + b"\n") * 150_000
"""About 30 MB of steps."""


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
    steps, validation = read_newest(folder.run.metrics, num_steps=50, last_step=1000)
    assert [row["step"] for row in steps] == list(range(211, 261))
    assert validation is None
    assert bytes_read() - before < 9 << 20 < len(LONG_PAST)


def test_rows_that_stand_across_blocks_are_whole(folder):
    """Against the whole file, with blocks that end inside of lines."""
    folder.steps(1, 400, validation_at=(7,))
    assert folder.run.metrics.stat().st_size > 1 << 16
    steps, validation = read_newest(folder.run.metrics, num_steps=1000, last_step=1000)
    assert steps == [step_row(step) for step in range(1, 401)]
    assert validation["step"] == 7


def bytes_read():
    """All that this process has read so far, from files of any kind."""
    (line,) = (
        line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")
    )
    return int(line.split()[1])
