"""A stop signal ends a run within a step, with a checkpoint and a status that says: go on later."""

import json
import os
import shutil
import signal
import time

import pytest
import tiny

from tst_megatron.megatron.distributed_checkpoint.model import read_saved_state
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.training.report.evaluations import list_evaluations
from tst_megatron.training.train import train_run


def test_ctrl_c_saves_within_a_step_and_until_then_no_other_start_comes_in(text, tmp_path):
    """A terminal sends it to the whole group: also to loader workers, which are deaf to it."""
    recipe = tiny.write_recipe(
        tmp_path / "long.yaml",
        text,
        {"bag-size": 4, "superposition-fraction": 0.1, "max-epochs": 2},
        train_iters=5000,
        save_interval=10_000,
        eval_interval=10_000,
        lr_wsd_decay_iters=50,
        num_workers=2,
    )
    run = tmp_path / "run"
    (process,) = tiny.start_ranks(
        *("train", str(recipe), "--run-folder", str(run)),
        num_ranks=1,
        log=tmp_path / "train.log",
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while not ((run / "metrics.jsonl").exists() and len(tiny.metrics(run)) >= 3):
        assert process.poll() is None, (tmp_path / "train.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        expect_refused(recipe, run, process.pid, tmp_path / "second.log")
    except BaseException:
        process.kill()
        raise
    seen = len(tiny.metrics(run))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=300) == 75, (run / "logs" / "rank-0.log").read_text()
    state = tiny.state(run)
    rows = tiny.metrics(run)
    assert state["status"] == "stopped"
    assert [row["step"] for row in rows] == list(range(1, state["step"] + 1))
    assert state["step"] <= seen + 20
    assert state["checkpoint"] == f"checkpoints/iter_{state['step']:07d}"
    assert (run / state["checkpoint"] / ".metadata").exists()
    assert json.loads((run / "saves.json").read_text()) == {"newest completed save": state["step"]}
    said = (tmp_path / "train.log").read_text()
    assert said.count("stopped: asked to stop; a checkpoint was saved\n") == 1
    assert f"every rank runs: tst-megatron train {recipe} --run-folder {run}\n" in said
    assert (run / "report" / "losses.png").read_bytes().startswith(b"\x89PNG")


def expect_refused(recipe, run, holder, log):
    """A second start is, before it touches anything; a check goes on, and says why."""
    before = {path: path.stat().st_ino for path in run.rglob("*")}
    arguments = (str(recipe), "--run-folder", str(run))
    said = [(f"{run}: in use by process {holder} on ", 2), ("A start is refused until", 0)]
    for command, (words, status) in zip(("train", "check"), said, strict=True):
        (second,) = tiny.fork_ranks(command, *arguments, num_ranks=1, log=log)
        assert second.wait(timeout=300) == status and words in log.read_text(), log.read_text()
    assert {path: path.stat().st_ino for path in before} == before
    assert not (run / "metrics.dropped.jsonl").exists()


def test_ctrl_c_during_the_start_of_all_ranks_ends_them_after_their_first_step(text, tmp_path):
    """To the group of a launcher, so that each rank gets two signals for one."""
    recipe = tiny.write_recipe(tmp_path / "tst.yaml", text, {"bag-size": 1})
    run, log = tmp_path / "run", tmp_path / "train.log"
    arguments = ("train", str(recipe), "--run-folder", str(run), "--nproc", "2")
    process = tiny.start(*arguments, log=log, start_new_session=True)
    deadline = time.monotonic() + 600
    while len(tiny.children(process.pid)) < 2:
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=300) == 75, log.read_text()
    assert log.read_text().count("asked to stop: a checkpoint is saved") == 1
    state = tiny.state(run)
    assert (state["status"], state["step"]) == ("stopped", 1)
    assert [row["step"] for row in tiny.metrics(run)] == [1]
    said = [" ".join(line.split()) for line in log.read_text().splitlines()]
    assert [line for line in said if line.startswith(("steps", "next "))] == [
        "steps 1 of 20",
        f"next tst-megatron train {recipe} --run-folder {run} --nproc 2",
    ]
    assert not any("recovery" in line and "loss" in line for line in said)


def test_stop_inside_an_evaluation_changes_no_later_number(short_recipe, short_run, tmp_path):
    recipe, run = short_recipe("workers", num_workers=2), tmp_path / "run"
    # Of 3 x 4 micro-batches in each evaluation: in the second batch of the second.
    tiny.train_with_faults(recipe, run, 75, stop_in_evaluation=12 + 6)
    state = tiny.state(run)
    assert (state["status"], state["step"]) == ("stopped", 12)
    assert held_out_read(run) == 24 + 16, "the stop did not cut an evaluation off"
    assert list(kept(run)) == [6]
    shutil.copy(kept(run)[6], run / "evaluations" / "validation-0000013.npz")
    tiny.train(recipe, run)
    assert tiny.loss_bits(run) == tiny.loss_bits(short_run)
    evaluations = tiny.loss_bits(short_run, "validation")
    del evaluations[12]
    assert tiny.loss_bits(run, "validation") == evaluations
    assert list(evaluations) == [6, 18, 24]
    # Of each held-out sequence too; the file of a later step than that of the resume is gone.
    assert list(kept(run)) == [6, 18, 24]
    for step, path in kept(run).items():
        assert path.read_bytes() == kept(short_run)[step].read_bytes()
    # The same sequences in another order may well have the same mean.
    assert held_out_read(run) == held_out_read(short_run) == 4 * 24


def kept(run):
    """Step -> file of each evaluation whose losses of single sequences are kept."""
    return list_evaluations(run / "evaluations")


def held_out_read(run):
    """Held-out sequences that Megatron has counted by the newest checkpoint."""
    return read_saved_state(run / tiny.state(run)["checkpoint"])["args"].consumed_valid_samples


def test_failure_inside_training_is_no_bad_input(text, tmp_path):
    recipe = tiny.write_recipe(tmp_path / "bad.yaml", text, {"bag-size": 1})
    tiny.train_with_faults(recipe, tmp_path / "run", status=1, nan_at=1)
    state = tiny.state(tmp_path / "run")
    assert state["status"] == "failed"
    assert "in the loss of the first step after a start" in state["reason"]
    traceback = (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    assert "Traceback" in traceback and state["checkpoint"] is None
    said = (tmp_path / "run.log").read_text()
    log = tmp_path / "run" / "logs" / "rank-0.log"
    assert said.splitlines()[-1] == f"failed: {state['reason']} (log: {log})"
    assert "Traceback" not in said


def test_damaged_text_is_bad_input_and_makes_no_run(text, tmp_path):
    damaged = tmp_path / "text"
    shutil.copytree(text, damaged)
    with (damaged / "train.bin").open("r+b") as tokens:
        tokens.truncate(100)
    recipe = tiny.write_recipe(tmp_path / "bad.yaml", damaged, {"bag-size": 1})
    with pytest.raises(RecipeError, match=r"train\.bin: its content is not what manifest"):
        train_run(recipe, [], tmp_path / "run", nproc=1)
    assert not (tmp_path / "run").exists()
