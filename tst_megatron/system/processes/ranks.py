"""Read from the environment which rank of a job this process is.

torchrun, and our own job scripts, set ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``. srun sets
variables of its own. A shell that ``srun --pty`` or ``salloc`` starts has those too, and is not a
rank. It is known by this: it is a step of one task, without an address where it meets others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Variables that torchrun and the job scripts set."""

SLURMS = {
    "RANK": ("SLURM_PROCID",),
    # The first is of the step. In a shell of salloc the second is of the entire job.
    "WORLD_SIZE": ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    "LOCAL_RANK": ("SLURM_LOCALID",),
}
"""Variables that srun sets instead."""

ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
"""Variables by which ranks find each other."""

_LEAST = {"WORLD_SIZE": 1, "SLURM_STEP_NUM_TASKS": 1, "SLURM_NTASKS": 1, "MASTER_PORT": 1}
_HIGHEST_PORT = 65_535
_LONGEST_SHOWN = 40


def number_of(environment: Mapping[str, str], name: str) -> int | None:
    """Return a variable that holds a whole number; None if it is not set, or empty.

    Raises:
        ValueError: it holds something else.
    """
    value = environment.get(name)
    if not value:
        return None
    least = _LEAST.get(name, 0)
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) < least:
        shown = repr(value[:_LONGEST_SHOWN]) + ("..." if len(value) > _LONGEST_SHOWN else "")
        raise ValueError(
            f"{name}={shown} in the environment: must be a whole number from {least}. torchrun, "
            f"srun and the job scripts set it for each rank: unset {name}, or start the ranks by "
            "one of these"
        )
    return int(value)


def variables_of_a_rank(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return this process's ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``, all from one source.

    Args:
        environment: the process's variables.

    Returns:
        The variables, none if this process is no rank of a job; and what is wrong with them, a
        sentence each.
    """
    problems: list[str] = []

    def read(*names: str) -> int | None:
        """The first of these variables that is set."""
        for name in names:
            try:
                value = number_of(environment, name)
            except ValueError as error:
                problems.append(str(error))
                return None
            if value is not None:
                return value
        return None

    found = {name: read(name) for name in OWN}
    if not environment.get("RANK"):
        if problems or not environment.get("SLURM_STEP_ID"):
            return {}, problems
        found = {name: read(*slurms) for name, slurms in SLURMS.items()}
        is_told_where = all(environment.get(name) for name in ADDRESS)
        if not problems and not found["RANK"] and (found["WORLD_SIZE"] or 1) == 1:
            if not is_told_where:
                return {}, []
            found.update(RANK=0, WORLD_SIZE=1)
    port = read("MASTER_PORT")
    if not problems:
        problems += _inconsistencies(environment, found["RANK"], found["WORLD_SIZE"], port)
    return {name: str(value) for name, value in found.items() if value is not None}, problems


def _inconsistencies(
    environment: Mapping[str, str], rank: int | None, ranks: int | None, port: int | None
) -> list[str]:
    """List what is missing beside a rank's number, or contradicts it."""
    problems = []
    if ranks is None:
        problems.append(
            "WORLD_SIZE: not set, and this process is a rank of a job. Set it to the number of "
            "ranks, or unset RANK if this is no rank"
        )
    elif rank is not None and rank >= ranks:
        problems.append(
            f"RANK={rank} of WORLD_SIZE={ranks}: ranks count from 0, so the last is {ranks - 1}. "
            "Unset both, or let torchrun or srun set them"
        )
    if missing := [name for name in ADDRESS if not environment.get(name)]:
        problems.append(
            f"{' and '.join(missing)}: not set, and the ranks of a job find each other by them. "
            "Export the first node's name and a free port before srun; or let this command start "
            "the ranks, with --nproc N"
        )
    if port is not None and port > _HIGHEST_PORT:
        problems.append(f"MASTER_PORT={port}: the highest port is {_HIGHEST_PORT}. Use a lower one")
    return problems
