"""The GPUs that the tests hide from everything else."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def on_gpu() -> dict[str, str]:
    """The environment with the GPUs that the tests hide."""
    from machine import VISIBLE_DEVICES

    hidden = ("CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET", "OMP_NUM_THREADS")
    shown = {key: value for key, value in os.environ.items() if key not in hidden}
    if VISIBLE_DEVICES is not None:
        shown["CUDA_VISIBLE_DEVICES"] = VISIBLE_DEVICES
    return shown


@functools.cache
def capabilities() -> list[list[int]]:
    """The compute capability of each GPU that torch finds, asked in a process of its own."""
    if not shutil.which("nvidia-smi"):
        return []
    probe = (
        "import json, torch; n = torch.cuda.device_count(); "
        "print(json.dumps([torch.cuda.get_device_capability(i) for i in range(n)]))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", probe], env=on_gpu(), capture_output=True, text=True, check=True
    )
    found: list[list[int]] = json.loads(asked.stdout)
    return found


def num_devices() -> int:
    """Return the number of GPUs that torch finds."""
    return len(capabilities())


def tst(*arguments: str) -> str:
    """Run ``tst-megatron`` where it sees the GPUs; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "tst_megatron", *arguments],
        env=on_gpu(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(recipe: Path, folder: Path, *overrides: str, num_ranks: int) -> None:
    """Train on the GPUs of this machine."""
    tst(
        *("train", str(recipe), *overrides),
        *("--nproc", str(num_ranks), "--run-folder", str(folder)),
    )
