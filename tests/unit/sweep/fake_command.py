"""Stands for ``tst-megatron`` where a test is about a sweep: ``check``, ``branch`` and ``train``.

A run counts to its last step, with a row of metrics for each and a checkpoint for every fifth, and
continues from its newest. From the environment come ``SECONDS_OF_A_STEP``,
``SECONDS_OF_A_BRANCH``, ``FAIL`` (``NAME@STEP``), ``REFUSE`` (a word in the name of a recipe) and
``NOTES``, a file that gets a line for each command. Nothing of the package is imported, so that a
command starts at once.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import yaml


def seconds_of(what):
    return float(os.environ.get(f"SECONDS_OF_A_{what}", "0"))


def note(*words):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps([*words, os.environ.get("OMP_NUM_THREADS")]) + "\n")


def after(name, words):
    return words[words.index(name) + 1] if name in words else None


def steps_of(recipe):
    return yaml.safe_load(recipe.read_text())["train-iters"]


def branch(trunk, *words):
    trunk, step, output = Path(trunk), int(after("--step", words)), Path(after("--output", words))
    note("branch", output.name, trunk.name, step)
    time.sleep(seconds_of("BRANCH"))
    saved = trunk / "checkpoints" / f"iter_{step:07d}"
    if not saved.is_dir():
        print(f"{saved}: there is none", file=sys.stderr)
        return 2
    new = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(saved, new / "checkpoints" / saved.name)
    keys = dict(word.split("=", 1) for word in words if "=" in word)
    recipe = {"train-iters": steps_of(trunk / "recipe.yaml")}
    recipe |= {key: yaml.safe_load(value) for key, value in keys.items()}
    (new / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = (trunk / "metrics.jsonl").read_text().splitlines()[:step]
    (new / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows))
    new.rename(output)
    return 0


def train(recipe, *words):
    run, wanted = Path(after("--run-folder", words)), []
    signal.signal(signal.SIGTERM, lambda *_: wanted.append("stop"))
    steps = steps_of(Path(recipe))
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "recipe.yaml").exists():
        (run / "recipe.yaml").write_text(yaml.safe_dump({"train-iters": steps}))
    done = max((int(path.name[5:]) for path in (run / "checkpoints").glob("iter_*")), default=0)
    metrics = run / "metrics.jsonl"
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    metrics.write_text("".join(f"{row}\n" for row in rows[:done]))
    note("train", run.name, done, after("--nproc", words))
    failing, _, failing_at = os.environ.get("FAIL", "@0").partition("@")
    for step in range(done + 1, steps + 1):
        time.sleep(seconds_of("STEP"))
        if failing == run.name and int(failing_at) == step:
            print("the loss is NaN")
            return end(run, "failed", "the loss is NaN", step - 1, 1)
        with metrics.open("a") as file:
            file.write(json.dumps({"event": "step", "step": step, "step seconds": 0.5}) + "\n")
        # Where a phase or a decay of the tests' recipes begins, too.
        if step % 5 == 0 or step in (16, steps) or wanted:
            (run / "checkpoints" / f"iter_{step:07d}").mkdir(parents=True, exist_ok=True)
        if wanted:
            return end(run, "stopped", "asked to stop; a checkpoint was saved", step, 75)
    return end(run, "finished", "all steps are done", steps, 0)


def end(run, word, reason, step, status):
    state = {"status": word, "reason": reason, "step": step, "exit_status": status}
    (run / "state.json.new").write_text(json.dumps(state))
    (run / "state.json.new").rename(run / "state.json")
    return status


def check(recipe, *_):
    note("check", Path(recipe).stem)
    if (refused := os.environ.get("REFUSE")) and refused in recipe:
        print("1 problem:\n  - lr: Megatron does not like it", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit({"check": check, "branch": branch, "train": train}[sys.argv[1]](*sys.argv[2:]))
