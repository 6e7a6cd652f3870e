"""A run folder as an interruption leaves it, made of one that ran to its end."""

import json
import shutil


def interrupted_at(step, run, folder, more_steps=2, torn='{"event": "st'):
    """The run folder as it was when ``step`` had just been saved and more steps had been logged.

    The tracker file is as a kill during its rewrite leaves it: rank 0 has to mend it before any
    rank reads it.
    """
    shutil.copytree(run, folder)
    for checkpoint in (folder / "checkpoints").glob("iter_*"):
        if int(checkpoint.name.removeprefix("iter_")) > step:
            shutil.rmtree(checkpoint)
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    logged = [line for line in lines if json.loads(line)["step"] <= step + more_steps]
    (folder / "metrics.jsonl").write_text("".join(logged) + torn)
