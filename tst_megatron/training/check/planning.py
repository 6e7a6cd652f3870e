"""Plan a run at its start, in a process of its own, so that its folder has something to hold it to.

Planning takes seconds of one core and no GPU, and training does not wait for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tst_megatron.plan.cost.machine import gpu_named
from tst_megatron.plan.published.read import published
from tst_megatron.system.machine import nvidia_smi
from tst_megatron.system.processes.ranks import ADDRESS, OWN, SLURMS
from tst_megatron.training.run.folder import RunFolder

if TYPE_CHECKING:
    from tst_megatron.training.run.plan import RunPlan

LOG = "plan.log"
"""In the ``logs/`` of a run: what planning said."""


def plan_if_nobody_did(plan: RunPlan, run: RunFolder, command: Sequence[str]) -> None:
    """Begin to plan a run on GPUs whose folder has no plan.

    Args:
        plan: of the run.
        run: its folder, prepared.
        command: that trains it: ``train``, the recipe, its overrides, ``--run-folder``, the folder.
    """
    if not plan.is_on_cpu and not run.plan.exists():
        words = command[1 : command.index("--run-folder")]
        plan_in_background(words, run, num_gpus=plan.arguments.world_size)


def plan_in_background(
    recipe_words: Sequence[str], run: RunFolder, *, num_gpus: int
) -> subprocess.Popen[bytes] | None:
    """Begin to write the plan of a run into its folder.

    Args:
        recipe_words: the recipe and its overrides, as they were given.
        run: its folder, prepared.
        num_gpus: of the job.

    Returns:
        The process; None where the GPU or its price is not known.
    """
    gpu = _gpu_here()
    if gpu is None:
        return None
    words = ["plan", *recipe_words, "--gpus", str(num_gpus), "--gpu", gpu]
    of_ranks = {*OWN, *ADDRESS, *(name for names in SLURMS.values() for name in names)}
    environment = {name: value for name, value in os.environ.items() if name not in of_ranks}
    # The GPUs and the cores are the run's.
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with (run.logs / LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tst_megatron", *words, "--run-folder", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )


def _gpu_here() -> str | None:
    """Return the name by which a plan knows this machine's first GPU and its price, or None."""
    names = [name for (name,) in nvidia_smi.ask("gpu", ("name",)).rows]
    known = gpu_named(names[0]) if names else None
    return None if known is None or published().gpus[known].price is None else known
