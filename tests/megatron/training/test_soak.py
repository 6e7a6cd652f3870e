"""Three kills of ``tools/soak.py``: enough to see each kind, and the whole is ``make soak``."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import tiny
from rich.console import Console

TOOL = Path(__file__).parents[3] / "tools" / "soak.py"
spec = importlib.util.spec_from_file_location("soak", TOOL)
assert spec is not None and spec.loader is not None
SOAK = importlib.util.module_from_spec(spec)
sys.modules["soak"] = SOAK
spec.loader.exec_module(SOAK)

SWITCH, STEPS = 6, 40


class ForkedJob:
    """Two ranks, each with the workers of its own process group."""

    def __init__(self, recipe, run, log):
        arguments = ("train", str(recipe), "--run-folder", str(run))
        self._ranks = tiny.fork_ranks(*arguments, num_ranks=2, log=log)
        self._log = log

    def kill(self):
        for rank in self._ranks:
            os.killpg(rank.pid, signal.SIGKILL)
        for rank in self._ranks:
            assert rank.wait(60) == -signal.SIGKILL

    def poll(self):
        statuses = [rank.poll() for rank in self._ranks]
        return None if None in statuses else max(statuses, key=abs)

    def wait(self):
        tiny.wait(self._ranks, self._log)


def test_killed_run_goes_on_each_time_and_ends_as_if_nothing_had_been(text, tmp_path):
    recipe = tiny.write_recipe(
        tmp_path / "tst.yaml",
        text,
        {"bag-size": 4, "superposition-steps": SWITCH},
        expert_model_parallel_size=2,
        train_iters=STEPS,
        save_interval=3,
    )
    ForkedJob(recipe, tmp_path / "reference", tmp_path / "reference.log").wait()
    kills = SOAK.soak(
        tmp_path / "killed",
        lambda: ForkedJob(recipe, tmp_path / "killed", tmp_path / "killed.log"),
        num_kills=3,
        seed=1,
        console=Console(),
    )
    assert any(kill.is_inside_save for kill in kills)
    assert SOAK.differences(tmp_path / "killed", tmp_path / "reference") == []
    # The comparison can fail.
    damaged = tmp_path / "killed" / "metrics.jsonl"
    damaged.write_text(damaged.read_text().replace('"lm loss": ', '"lm loss": 1', 1))
    (found,) = SOAK.differences(tmp_path / "killed", tmp_path / "reference")
    assert found.startswith("step: 40 rows against 40, from {'step': 7")
