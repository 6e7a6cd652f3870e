"""How a rank ends, whatever training did: what state.json says, and that no child is left."""

import io
import json
import threading
import traceback
from types import SimpleNamespace

import pytest
from torch.distributed.checkpoint import api

from tst_megatron.megatron import loop, ranks
from tst_megatron.megatron.repairs import checkpoint_processes
from tst_megatron.system.processes import signals
from tst_megatron.training import pretrain as main_job
from tst_megatron.training.console import RankConsole
from tst_megatron.training.run import endings, saves, state
from tst_megatron.training.run.folder import RunFolder

NO_SPACE = OSError(28, "No space left on device")


class Job:
    """Ranks that share a run folder; what each does in place of training is given."""

    def __init__(self, folder, monkeypatch):
        self.run = RunFolder(folder)
        self.ended = []
        self.shown = io.StringIO()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(ranks, "device_name", lambda: "a device")
        monkeypatch.setattr(
            checkpoint_processes, "end_checkpoint_worker", lambda: self.ended.append("worker")
        )
        monkeypatch.setattr(signals, "end_children", lambda: self.ended.append("children"))

    def rank(self, number, train):
        plan = SimpleNamespace(is_on_cpu=False)
        with self._monkeypatch.context() as patch:
            patch.setenv("RANK", str(number))
            patch.setattr(main_job, "_train", lambda *_, **__: train())
            return main_job.pretrain(
                plan,
                self.run,
                start=None,
                console=RankConsole(file=self.shown, width=40),
            )

    def told(self):
        state = self.run.state()
        return state["status"], state["reason"]

    def told_status(self):
        return self.run.state()["exit_status"]


@pytest.fixture
def job(tmp_path, monkeypatch):
    return Job(tmp_path, monkeypatch)


def fails(error):
    def train():
        raise error

    return train


def test_failed_save_ends_as_every_failure_does(job):
    """Torch's exception for it is none of Python's ``Exception``."""
    error = api.CheckpointException("write", {0: (NO_SPACE, traceback.StackSummary())})
    assert job.rank(0, fails(error)) == 1
    cause = "rank 0: checkpoint write: OSError(28, 'No space left on device') on rank 0"
    assert job.told() == ("failed", cause)
    assert job.ended == ["worker", "children"]


def test_first_failure_of_a_start_is_told_and_not_what_came_of_it(job):
    def rank_0_while_rank_1_fails():
        assert job.rank(1, fails(NO_SPACE)) == 1
        raise RuntimeError("Connection closed by peer")

    assert job.rank(0, rank_0_while_rank_1_fails) == 1
    assert job.told() == ("failed", "rank 1: OSError(28, 'No space left on device')")


def test_each_rank_that_fails_says_so_in_one_line_with_its_log(job):
    job.rank(0, fails(NO_SPACE))
    job.rank(3, fails(ValueError("[red]two\nlines")))
    job.rank(1, fails(SystemExit("no such backend")))
    folder = job.run.path
    assert job.shown.getvalue().splitlines() == [
        f"failed: rank 0: OSError(28, 'No space left on device') (log: {folder}/logs/rank-0.log)",
        f"failed: rank 3: ValueError('[red]two\\nlines') (log: {folder}/logs/rank-3.log)",
        f"failed: rank 1: no such backend (log: {folder}/logs/rank-1.log)",
    ]


def test_run_that_stops_or_finishes_says_nothing_of_failure(job, monkeypatch):
    monkeypatch.setattr(saves, "is_finished", lambda *_: False)
    assert job.rank(0, lambda: None) == 0 and job.rank(0, fails(SystemExit(0))) == 75
    assert job.shown.getvalue() == ""


def test_machine_without_its_driver_leaves_a_state_and_a_word(job, monkeypatch):
    """Before anything of training has begun."""
    no_driver = fails(RuntimeError("Found no NVIDIA driver on your system"))
    monkeypatch.setattr(ranks, "device_name", no_driver)
    assert job.rank(0, no_driver) == job.told_status() == 1
    reason = "rank 0: RuntimeError('Found no NVIDIA driver on your system')"
    assert job.told() == ("failed", reason)
    assert job.shown.getvalue().startswith(f"failed: {reason} (log: ")
    assert "Traceback" not in job.shown.getvalue()


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "no terminal")])
def test_closed_terminal_changes_no_end(job, monkeypatch, error):
    monkeypatch.setattr(job.shown, "write", lambda *_: fails(error)())
    assert job.rank(0, fails(KeyError("x"))) == 1
    assert job.told() == ("failed", "rank 0: KeyError('x')")
    assert job.ended == ["worker", "children"]


def test_failure_of_the_start_before_is_told_no_more(job):
    job.rank(0, fails(NO_SPACE))
    assert job.rank(0, fails(KeyError("x"))) == 1
    assert job.told() == ("failed", "rank 0: KeyError('x')")
    assert job.told_status() == 1
    assert job.rank(0, lambda: None) == job.told_status() == 0
    assert job.told() == ("finished", "all steps are done")


@pytest.mark.parametrize(
    ("megatrons", "ours"), [(0, 75), (5, 1), ("text", 1)], ids=["stop", "failure", "message"]
)
def test_state_has_the_status_that_the_process_ends_with(job, monkeypatch, megatrons, ours):
    monkeypatch.setattr(saves, "is_finished", lambda *_: False)
    assert job.rank(0, fails(SystemExit(megatrons))) == job.told_status() == ours


def test_refused_result_on_the_same_node_is_not_to_be_restarted(job, monkeypatch):
    refused = ("loss is NaN", "node7", "RERUNNING_AGAIN_FROM_CHECKPOINT")
    monkeypatch.setattr(loop, "refused_result", lambda: refused)
    assert job.rank(0, fails(SystemExit(16))) == job.told_status() == 93


def test_no_rank_ends_before_the_first_has_said_how_the_run_stopped(job, monkeypatch):
    """The first to end with a status has the scheduler end the others."""
    monkeypatch.setattr(saves, "is_finished", lambda *_: False)
    running = {"reason": state.STARTED, "step": 0, "device": "cpu", "exit_status": 1}
    job.run.write_state("failed", **running)
    rank_0 = threading.Timer(
        0.5, lambda: job.run.write_state("stopped", **{**running, "reason": "asked to stop"})
    )
    rank_0.start()
    assert job.rank(1, fails(SystemExit(0))) == 75
    assert job.told() == ("stopped", "asked to stop")
    rank_0.join()


def test_node_that_a_restart_must_avoid_is_in_the_state(job, monkeypatch):
    monkeypatch.setattr(saves, "is_finished", lambda *_: False)
    refused = ("loss is NaN", "node7", "WILL_RERUN_FROM_CHECKPOINT")
    monkeypatch.setattr(loop, "refused_result", lambda: refused)
    assert job.rank(0, fails(SystemExit(16))) == job.told_status() == 75
    assert job.run.state()["sick_node"] == "node7"
    assert job.rank(0, fails(SystemExit(0))) == 75
    assert job.run.state()["sick_node"] is None


def test_state_of_a_start_that_is_killed_has_the_status_of_a_failure(job):
    def look():
        assert job.told() == ("failed", "started, and ended without saying how")
        assert job.told_status() == 1

    assert job.rank(0, look) == 0


def test_children_are_ended_where_the_state_cannot_be_written(job, monkeypatch):
    monkeypatch.setattr(job.run, "write_state", lambda *_, **__: fails(NO_SPACE)())
    with pytest.raises(OSError, match="No space left"):
        job.rank(1, fails(KeyError("x")))
    assert job.ended == ["worker", "children"]


def test_stop_after_the_last_step_says_what_was_cut_off(job, monkeypatch):
    reason = "all steps are done; the last evaluation was cut off"
    monkeypatch.setattr(saves, "is_finished", lambda *_: True)
    ending = endings.Ending(0, "finished", reason)
    monkeypatch.setattr(endings, "finished", lambda *_: ending)
    assert job.rank(0, fails(SystemExit(0))) == 0
    assert job.told() == ("finished", reason)


@pytest.mark.parametrize(("device", "mfu"), [("NVIDIA H200", 0.5), ("cpu", None)])
def test_mfu_is_recorded_where_the_peak_of_the_device_is_known(tmp_path, monkeypatch, device, mfu):
    from rich.console import Console

    from tst_megatron.megatron import loop
    from tst_megatron.schedule import Schedule, resolve_phases
    from tst_megatron.training.report import recorder as module

    schedule = Schedule(
        phases=resolve_phases([(1, 1.0)], num_steps=4), num_latent_positions=8, global_batch_size=2
    )
    written = []
    monkeypatch.setattr(loop, "teraflops_per_device", lambda _, seconds: 989 / seconds)
    monkeypatch.setattr(module.names, "get_args", lambda: None)
    monkeypatch.setattr(module, "_to_writers", lambda numbers, step: written.append(numbers))
    console = Console(file=io.StringIO())
    recorder = module.Recorder(tmp_path / "metrics.jsonl", schedule, console=console, device=device)
    recorder.on_load(0)
    recorder.on_step(1, 2.0, {"lm loss": 3.0})
    recorder.close()
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert row.get("MFU") == written[0].get("MFU") == mfu


def test_numbers_are_on_disk_before_the_checkpoint_that_follows_them(tmp_path, monkeypatch):
    """After a power cut the file may end before the checkpoint otherwise, with steps missing."""
    import os

    from rich.console import Console

    from tst_megatron.schedule import Schedule, resolve_phases
    from tst_megatron.training.report.recorder import Recorder

    schedule = Schedule(
        phases=resolve_phases([(1, 1.0)], num_steps=4), num_latent_positions=8, global_batch_size=2
    )
    path = tmp_path / "metrics.jsonl"
    recorder = Recorder(path, schedule, console=Console(file=io.StringIO()), device="cpu")
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.fstat(number).st_size))
    recorder.flush()
    recorder.on_load(0)
    recorder.on_evaluation(2, {"lm loss validation": 3.0})
    recorder.flush()
    recorder.close()
    assert flushed == [path.stat().st_size] and flushed[0] > 0
