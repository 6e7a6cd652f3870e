"""A stop signal ends a run within a step, with a checkpoint and a status that says: go on later."""

import json
import shutil
import signal
import time

import tiny


def test_sigterm_saves_within_a_step_and_ends_with_status_75(text, tmp_path):
    recipe = tiny.write_recipe(
        tmp_path / "long.yaml",
        text,
        {"bag-size": 4, "superposition-fraction": 0.1},
        train_iters=500,
        save_interval=1000,
        eval_interval=1000,
        lr_wsd_decay_iters=50,
    )
    run = tmp_path / "run"
    (process,) = tiny.start_ranks(
        *("train", str(recipe), "--run-folder", str(run)), num_ranks=1, log=tmp_path / "train.log"
    )
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and len(tiny.metrics(run)) >= 3):
        assert process.poll() is None, (tmp_path / "train.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    seen = len(tiny.metrics(run))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75, (tmp_path / "train.log").read_text()
    state = json.loads((run / "state.json").read_text())
    rows = tiny.metrics(run)
    assert state["status"] == "stopped"
    assert state["step"] == rows[-1]["step"] <= seen + 5
    assert state["checkpoint"] == f"checkpoints/iter_{state['step']:07d}"
    assert (run / state["checkpoint"] / ".metadata").exists()


def test_failure_inside_training_is_no_bad_input(text, tmp_path):
    damaged = tmp_path / "text"
    shutil.copytree(text, damaged)
    with (damaged / "train.bin").open("r+b") as tokens:
        tokens.truncate(100)
    recipe = tiny.write_recipe(tmp_path / "bad.yaml", damaged, {"bag-size": 1})
    log = tmp_path / "train.log"
    arguments = ("train", str(recipe), "--run-folder", str(tmp_path / "run"))
    tiny.wait(tiny.start_ranks(*arguments, num_ranks=1, log=log), log, status=1)
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["status"] == "failed"
    assert "train.bin" in state["reason"]
    traceback = (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    assert "Traceback" in traceback and "its index describes" in traceback
