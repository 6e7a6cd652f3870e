"""Judge the limits of a process, set by ``ulimit`` or by a container's control group."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tst_megatron.nodes.doctor.facts import Machine
from tst_megatron.nodes.doctor.finding import Finding, note, ok, problem
from tst_megatron.recipe.profiles import GPU_PROFILES

UNLIMITED = -1

LIMITS = {
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "memlock": resource.RLIMIT_MEMLOCK,
    "core": resource.RLIMIT_CORE,
    "as": resource.RLIMIT_AS,
}
"""Limits that are looked at, by their names in ``limits.conf``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Least:
    """A limit that must be high enough."""

    least: int
    """Value below which training fails."""
    enough: int
    """Value below which large jobs may fail."""
    what: str
    letter: str
    """Option of ``ulimit`` that sets it."""


LEAST = {
    "nofile": Least(
        least=1024,
        enough=4096,
        what="open files: text, indexes, checkpoints and a socket for each peer",
        letter="n",
    ),
    "nproc": Least(
        least=1024,
        enough=4096,
        what="processes and threads of the user: every rank of a node has hundreds",
        letter="u",
    ),
}


def _in_words(value: int) -> str:
    return "unlimited" if value == UNLIMITED else str(value)


def _is_below(value: int, wanted: int) -> bool:
    return value != UNLIMITED and value < wanted


def limit_findings(machine: Machine, profile: str) -> list[Finding]:
    """List limits of this process that stop a run from training, or may stop a large job."""
    found = [
        *_too_low(machine.limits),
        *_container(machine.most_tasks_of_container),
        *_locked_memory(machine, profile),
        *_address_space(machine.limits, profile),
        *_core_files(machine.limits),
    ]
    shown = (f"{name} {_in_words(machine.limits[name][0])}" for name in ("nofile", "nproc"))
    return found or [ok("limits", ", ".join(shown))]


def _too_low(limits: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    for name, rule in LEAST.items():
        soft, hard = limits[name]
        # What needs many files raises the limit as far as it may.
        value = hard if name == "nofile" and not _is_below(soft, rule.least) else soft
        if not _is_below(value, rule.enough):
            continue
        grade = problem if _is_below(value, rule.least) else note
        wanted = rule.least if grade is problem else rule.enough
        yield grade(
            f"limit {name}",
            f"{_in_words(soft)}, at most {_in_words(hard)}",
            needed=f"{wanted} or more {rule.what}",
            fix=f"{_ulimit(rule.letter, rule.enough, hard)}; in a container --ulimit {name}="
            f"{rule.enough}; under Slurm {name} in limits.conf of the nodes",
        )


def _ulimit(letter: str, wanted: int, hard: int) -> str:
    """The command that raises a limit, if the hard one leaves that to the user."""
    is_above = hard != UNLIMITED and (wanted == UNLIMITED or wanted > hard)
    if is_above:
        return f"root raises the hard limit, which is {_in_words(hard)}"
    return f"ulimit -{letter} {_in_words(wanted)}"


def _container(most: int | None) -> Iterator[Finding]:
    rule = LEAST["nproc"]
    if most is None or most >= rule.enough:
        return
    grade = problem if most < rule.least else note
    yield grade(
        "limit of the container",
        f"{most} processes and threads",
        needed=f"{rule.least if grade is problem else rule.enough} or more",
        fix="start the container with --pids-limit=-1",
    )


def _locked_memory(machine: Machine, profile: str) -> Iterator[Finding]:
    soft, hard = machine.limits["memlock"]
    if soft == UNLIMITED or machine.may_lock_memory or not machine.infiniband:
        return
    grade = problem if profile in GPU_PROFILES else note
    yield grade(
        "limit memlock",
        f"{soft >> 10} KiB, with InfiniBand ({', '.join(machine.infiniband)})",
        needed="unlimited: NCCL locks the memory that it sends over InfiniBand",
        fix=f"{_ulimit('l', UNLIMITED, hard)}; in a container --ulimit memlock=-1; under Slurm "
        "LimitMEMLOCK=infinity of slurmd",
    )


def _address_space(limits: Mapping[str, tuple[int, int]], profile: str) -> Iterator[Finding]:
    soft, hard = limits["as"]
    if soft == UNLIMITED:
        return
    grade = problem if profile in GPU_PROFILES else note
    yield grade(
        "limit as",
        f"{soft / 2**30:.1f} GiB of address space",
        needed="unlimited: CUDA reserves addresses for the memory of host and GPUs together",
        fix=f"{_ulimit('v', UNLIMITED, hard)}; under Slurm VSizeFactor=0",
    )


def _core_files(limits: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    soft, _ = limits["core"]
    if soft:
        yield note(
            "limit core",
            _in_words(soft),
            needed="0: a crash would write the memory of each rank into a file",
            fix="ulimit -c 0",
        )
