"""Check in a process of its own that a checkpoint has every weight of a model.

The model must be built to know how Megatron names its weights. The ranks of a job cannot do that:
they have another device and other process groups. ``training/run/pretrained.py`` asks here.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.reader.process import in_one_process
from tst_megatron.checkpoint.reader.weights import skeleton


def missing_weights(
    folder: Path, args: argparse.Namespace, content_metadata: dict[str, Any] | None
) -> list[str]:
    """List what a run's model needs and a checkpoint does not have, a sentence for each tensor.

    Args:
        folder: one ``torch_dist`` checkpoint.
        args: Megatron's arguments of the run, validated.
        content_metadata: what the checkpoint says about its own layout.
    """
    # No rank of a job, and no GPU.
    alone = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "tst_megatron.checkpoint.reader.missing_weights", str(folder)],
        input=pickle.dumps((args, content_metadata)),
        capture_output=True,
        env={**alone, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{folder}: could not be compared with the recipe's model:\n{done.stderr.decode()}"
        )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Read a model's description from standard input and print the problems as a JSON list."""
    in_one_process()
    # Importing Megatron needs the CPU host, which the line before installs.
    from tst_megatron.megatron.distributed_checkpoint.model import SavedWeights

    weights, _ = skeleton(*pickle.load(sys.stdin.buffer))
    print(json.dumps(SavedWeights(Path(sys.argv[1]), weights).problems()))


if __name__ == "__main__":
    main()
