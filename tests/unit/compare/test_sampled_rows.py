"""Reading a long metrics.jsonl: all evaluations and some steps, in little time."""

import json
import os
import time

import numpy as np
import pytest
from made_runs import Made

from tst_megatron.compare.comparison import compare_runs
from tst_megatron.compare.runs.sampled_rows import sample_rows

NUM_STEPS, SWITCH = 100_000, 30_000
PHASES = ((4, SWITCH), (1, NUM_STEPS - SWITCH))


def step_line(step):
    bag_size = 4 if step <= SWITCH else 1
    row = {
        "event": "step",
        "step": step,
        "phase": "superposition" if bag_size > 1 else "recovery",
        "bag loss" if bag_size > 1 else "lm loss": 2 + 5 * step**-0.3,
        "learning-rate": 3.9999998989515007e-05,
        "grad-norm": 1.2345678901234567,
        "load_balancing_loss": 1.0123456789,
        "seq_load_balancing_loss": 1.0234567891,
        "z_loss": 0.000123456789,
        "bag size": bag_size,
        "raw tokens": 2048 * (step + 3 * min(step, SWITCH)),
        "latent positions": 2048 * step,
        "raw tokens per second": 19194.511959530755,
        "latent positions per second": 4798.627989882689,
        "TFLOP/s per device": 412.90532667949517,
        "step seconds": 0.42678865799098276,
        "device": "NVIDIA H200",
    }
    return json.dumps(row)


def validation_line(step):
    row = {"event": "validation", "step": step, "lm loss validation": 2 + 5 * step**-0.3}
    return json.dumps(row)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A run of 100,000 steps, 500 bytes a row, evaluated 400 times."""
    made = Made(tmp_path_factory.mktemp("long") / "tst", PHASES)
    with made.metrics.open("w") as file:
        for step in range(1, NUM_STEPS + 1):
            file.write(step_line(step) + "\n")
            if step % 250 == 0:
                file.write(validation_line(step) + "\n")
    assert made.metrics.stat().st_size > 45_000_000
    return made


def test_long_file_gives_every_evaluation_and_evenly_spread_steps(long_run):
    rows = sample_rows(long_run.metrics, switches=[SWITCH])
    assert [row["step"] for row in rows.validation] == list(range(250, NUM_STEPS + 1, 250))
    assert not rows.is_whole and rows.num_damaged == 0
    steps = [row["step"] for row in rows.steps]
    assert steps == sorted(set(steps)) and 4000 <= len(steps) <= 7000
    assert (steps[0], steps[-1]) == (1, NUM_STEPS)
    assert max(np.diff(steps)) <= 30


def test_every_step_after_a_switch_is_there(long_run):
    steps = {row["step"] for row in sample_rows(long_run.metrics, switches=[SWITCH]).steps}
    assert set(range(SWITCH + 1, SWITCH + 2001)) <= steps
    assert not set(range(SWITCH - 2000, SWITCH)) <= steps


def test_switch_at_the_beginning_and_at_the_end_of_the_file(long_run):
    rows = sample_rows(long_run.metrics, switches=[1, NUM_STEPS - 10], dense_steps=50)
    steps = {row["step"] for row in rows.steps}
    assert set(range(2, 52)) | set(range(NUM_STEPS - 9, NUM_STEPS + 1)) <= steps


def test_short_file_is_parsed_whole_and_damaged_lines_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [step_line(step) for step in range(1, 101)]
    lines[50] = lines[50][:40]
    lines.insert(70, "")
    path.write_text("\n".join([*lines, validation_line(100)]) + "\n")
    rows = sample_rows(path)
    assert rows.is_whole and rows.num_damaged == 1
    assert [row["step"] for row in rows.steps] == [step for step in range(1, 101) if step != 51]
    assert len(rows.validation) == 1


def test_torn_last_line_of_a_running_run_is_no_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{step_line(1)}\n{step_line(2)}\n{step_line(3)[:77]}")
    rows = sample_rows(path)
    assert [row["step"] for row in rows.steps] == [1, 2] and rows.num_damaged == 0


def test_last_line_without_its_end_counts_if_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{step_line(1)}\n{validation_line(1)}")
    assert len(sample_rows(path).validation) == 1


def test_damaged_line_in_a_long_file_costs_that_line_alone(long_run, tmp_path):
    lines = long_run.metrics.read_bytes().split(b"\n")
    at = lines.index(validation_line(50_000).encode())
    lines[at] = lines[at][:60]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = sample_rows(path, switches=[SWITCH])
    assert rows.num_damaged == 1 and len(rows.validation) == 399


def test_missing_file_is_none(tmp_path):
    assert sample_rows(tmp_path / "metrics.jsonl") is None


def test_twenty_runs_of_100_000_steps_open_in_ten_seconds(long_run, tmp_path):
    runs = []
    for number in range(20):
        size = 1 if number < 10 else 4
        phases = PHASES if size == 4 else ((1, NUM_STEPS),)
        made = Made(tmp_path / f"{'tst' if size == 4 else 'baseline'}-seed{number % 10}", phases)
        made.resolved["seed"] = number % 10
        (made.path / "resolved.yaml").write_text(json.dumps(made.resolved))
        made.facts()
        os.link(long_run.metrics, made.metrics)
        runs.append(made.path)
    began, used = time.perf_counter(), time.process_time()
    comparison = compare_runs(runs)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    assert [len(arm.runs) for arm in comparison.arms] == [10, 10]
    # Two cores read 1 GB in less than 10 seconds. Others may use the machine, so a late wall clock
    # is forgiven where the processor was not used as long.
    assert min(wall, cpu) < 10, (wall, cpu)
