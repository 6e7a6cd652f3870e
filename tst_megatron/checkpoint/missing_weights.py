"""Whether a checkpoint has every weight of a model, asked in a process of its own.

A model is built to know how Megatron names its weights, which the ranks of a job, with another
device and groups of processes, cannot do beside their own. Run by ``run/pretrained.py``.
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


def missing_weights(
    folder: Path, args: argparse.Namespace, content_metadata: dict[str, Any] | None
) -> list[str]:
    """What a run's model needs and a checkpoint does not have so; a sentence for each tensor.

    Args:
        folder: one ``torch_dist`` checkpoint.
        args: Megatron's arguments of the run, validated.
        content_metadata: what the checkpoint says about its own layout.
    """
    # No rank of a job, and no GPU.
    alone = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "tst_megatron.checkpoint.missing_weights", str(folder)],
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
    from tst_megatron.checkpoint.open import weights_of
    from tst_megatron.checkpoint.seam import seam

    megatron = seam()
    weights = weights_of(*pickle.load(sys.stdin.buffer))
    print(json.dumps(megatron.SavedWeights(Path(sys.argv[1]), weights).problems()))


if __name__ == "__main__":
    main()
