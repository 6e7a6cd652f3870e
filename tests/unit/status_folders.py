"""Made-up run folders for the tests of ``tst-megatron status``."""

import json
import os
import time

import pytest
import yaml

from tst_megatron.cli.views.status import run_status
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.state import STARTED

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
        "MFU": 0.4 / step_seconds,
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
