"""An asynchronous save is that of its step, whatever training does meanwhile."""

import multiprocessing
import os
import shutil
import signal
import time

import pytest
import tiny
import torch

from tst_megatron.megatron import names
from tst_megatron.megatron.repairs import dead_worker

SAVED, STOPPED = 8, 13


@pytest.fixture(scope="module")
def recipe(short_recipe):
    return short_recipe("async", async_save=True, save_interval=SAVED)


@pytest.fixture(scope="module")
def stopped(recipe, tmp_path_factory):
    """A run whose writes take longer than the steps after them, stopped with one pending."""
    folder = tmp_path_factory.mktemp("async")
    tiny.train_with_faults(recipe, folder / "run", 75, slow_writes=3.0, stop_at=STOPPED)
    return folder / "run"


def place(lines, text):
    (found,) = [number for number, line in enumerate(lines) if text in line]
    return found


def test_steps_go_on_while_a_save_is_pending(stopped):
    lines = (stopped / "logs" / "rank-0.log").read_text().splitlines()
    assert any(line.split()[-1] == "True" for line in lines if " async_save ..." in line)
    scheduled = place(lines, f"scheduled an async checkpoint save at iteration {SAVED:7d}")
    saved = place(lines, f"successfully saved checkpoint from iteration {SAVED:7d}")
    between = [line for line in lines[scheduled:saved] if "elapsed time per iteration" in line]
    assert len(between) == STOPPED - SAVED


def test_stop_finishes_the_pending_saves(stopped):
    state = tiny.state(stopped)
    assert (state["status"], state["step"]) == ("stopped", STOPPED)
    assert (stopped / state["checkpoint"] / ".metadata").exists()


def test_weights_are_bit_for_bit_those_of_a_synchronous_save(stopped, short_run):
    checkpoint = f"checkpoints/iter_{SAVED:07d}"
    ours, theirs = (tiny.saved_weights(run / checkpoint) for run in (stopped, short_run))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_resume_from_it_is_bit_identical_to_the_uninterrupted_run(
    stopped, short_run, recipe, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    shutil.rmtree(run / "checkpoints" / f"iter_{STOPPED:07d}")
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(SAVED))
    tiny.train(recipe, run)
    for event in ("step", "validation"):
        assert tiny.loss_bits(run, event) == tiny.loss_bits(short_run, event)
    log = (run / "logs" / "rank-0.log").read_text()
    assert "scheduled an async checkpoint save at iteration      16" in log


def test_killed_worker_ends_the_run_and_is_named(recipe, tmp_path):
    run = tmp_path / "run"
    tiny.train_with_faults(recipe, run, 1, slow_writes=60.0, kill_worker_at=SAVED + 2)
    # From the last step that was logged, after which the worker was killed.
    last_step, end = (run / name for name in ("metrics.jsonl", "state.json"))
    assert end.stat().st_mtime - last_step.stat().st_mtime < 60
    state = tiny.state(run)
    assert state["status"] == "failed"
    assert "checkpoint worker" in state["reason"] and "status -9" in state["reason"]
    assert state["checkpoint"] is None


# --- what waits for a worker, with one that is dead ----------------------------------------------


class DeadWorker:
    """A caller of Megatron's with a process that is killed, and its queues."""

    cur_item = None

    def __init__(self):
        context = multiprocessing.get_context("fork")
        self.tasks, self._persistent_comp_q = context.JoinableQueue(), context.Queue()
        self.process = context.Process(target=time.sleep, args=(60,))
        self.process.start()
        self.tasks.put("work")
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


@pytest.fixture
def worker():
    worker = DeadWorker()
    yield worker
    worker.tasks.cancel_join_thread()


def test_join_of_a_dead_workers_queue_ends(worker):
    with pytest.raises(RuntimeError, match=f"process {worker.process.pid}.* status -9"):
        dead_worker._join(worker.tasks, worker.process)


def test_wait_for_a_dead_worker_ends(worker):
    wait = dead_worker.unless_the_worker_died(lambda self, blocking, no_dist: pytest.fail("waited"))
    with pytest.raises(RuntimeError, match="checkpoint worker"):
        wait(worker, blocking=True)


def test_last_word_of_a_dead_worker_counts(worker):
    worker._persistent_comp_q.put(7)
    wait = dead_worker.unless_the_worker_died(lambda self, blocking, no_dist: self.cur_item)
    assert wait(worker, blocking=True) == 7


def test_dead_worker_is_noticed_at_the_next_step(worker, monkeypatch):
    caller = names.async_utils.PersistentAsyncCaller
    monkeypatch.setattr(caller, "_persistent_process", worker.process)
    finalize = dead_worker.with_a_worker(lambda self, blocking, no_dist: pytest.fail("went on"))
    with pytest.raises(RuntimeError, match="checkpoint worker"):
        finalize(object())
