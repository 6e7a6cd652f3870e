"""The GPUs that the tests hide from everything else."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from machine import VISIBLE_DEVICES


def on_gpu() -> dict[str, str]:
    """The environment with the GPUs that the tests hide."""
    shown = dict(os.environ)
    shown.pop("CUDA_VISIBLE_DEVICES", None)
    if VISIBLE_DEVICES is not None:
        shown["CUDA_VISIBLE_DEVICES"] = VISIBLE_DEVICES
    return shown


@functools.cache
def num_devices() -> int:
    """How many GPUs torch finds, asked in a process of its own."""
    if not shutil.which("nvidia-smi"):
        return 0
    probe = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run(
        [sys.executable, "-c", probe], env=on_gpu(), capture_output=True, text=True, check=True
    )
    return int(asked.stdout)


def train(recipe: Path, folder: Path, *overrides: str, num_ranks: int) -> None:
    """Train on the GPUs of this machine."""
    command = [sys.executable, "-m", "tst_megatron", "train", str(recipe), *overrides]
    done = subprocess.run(
        [*command, "--nproc", str(num_ranks), "--run-folder", str(folder)],
        env=on_gpu(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
