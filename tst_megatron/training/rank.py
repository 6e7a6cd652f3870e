"""The rank that this process is: found in the environment, or made where it is the only one."""

from __future__ import annotations

import os

from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system.processes.ranks import variables_of_a_rank
from tst_megatron.training.run.launch import free_port


def rank_of_environment(nproc: int | None = None) -> int | None:
    """Return this process's rank, from torchrun's variables or srun's; None where it is no rank.

    The variables of torchrun are set, whichever they came from.

    Args:
        nproc: this command is to start that many ranks, and so is none, whatever the variables
            of the shell it was typed in say.

    Raises:
        RecipeError: the variables contradict each other or are no numbers, or the ranks cannot
            find each other.
    """
    if nproc is not None:
        _refuse_several_commands(nproc)
        return None
    variables, problems = variables_of_a_rank(os.environ)
    if problems:
        raise RecipeError(problems)
    os.environ.update(variables)
    return int(variables["RANK"]) if variables else None


def _refuse_several_commands(nproc: int) -> None:
    """Refuse to start ranks from a task of an srun that is not its first.

    The first may be a person's shell.
    """
    task = os.environ.get("SLURM_PROCID") if "SLURM_STEP_ID" in os.environ else None
    if task not in (None, "0"):
        raise RecipeError(
            [
                f"--nproc {nproc}: this is task {task} of an srun, and every task would start as "
                "many ranks. Leave --nproc out, or give srun --ntasks=1"
            ]
        )


def be_the_only_rank() -> int:
    """Set the variables of a job with one rank, and return that rank."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return 0
