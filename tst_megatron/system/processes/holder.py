"""Describe the process that works in a folder, and tell later whether it may still be alive."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

_ONLY_HERE = {"localflock", "nolock", "local_lock=all", "local_lock=flock"}
"""Mount options of Lustre and NFS with which no other node sees a lock."""

_OF_ONE_NODE = ("beegfs", "fuse", "9p", "virtiofs")
"""File systems whose locks usually stay on one node, without an option that says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that works in a folder, as the file ``lock`` describes it."""

    host: str = ""
    process: int = 0
    started: str = ""
    """Clock ticks from the machine's start to the process's. Process numbers are used again."""
    machine: str = ""
    """The identity of this boot of the machine."""
    namespace: str = ""
    """The namespace of process numbers: a container may have its own."""
    job: str = ""
    """Slurm's number of the job, if there is one."""
    restart: str = ""
    """The number of the start of that job."""
    meeting: str = ""
    """Address where the ranks of this start meet, the same for all of them; empty if unknown."""
    since: str = ""
    is_over: bool = False
    """It has released the folder."""

    def __str__(self) -> str:
        """Describe the process for a person."""
        if not self.host or self.is_over:
            return "another process"
        job = f" of job {self.job}" if self.job else ""
        return f"process {self.process}{job} on {self.host}, since {self.since}"

    def is_earlier_start_of(self, other: Holder) -> bool:
        """Tell whether both are of one Slurm job; it ends all processes before it starts again."""
        return bool(self.job) and self.job == other.job and self.restart != other.restart

    def is_on_machine_of(self, other: Holder) -> bool:
        """Tell whether the process numbers of both mean the same."""
        return bool(self.machine) and (self.host, self.machine, self.namespace) == (
            other.host,
            other.machine,
            other.namespace,
        )


def this_process() -> Holder:
    """Describe this process, for the file ``lock``."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        started=started_at(os.getpid()),
        machine=_text(Path("/proc/sys/kernel/random/boot_id")),
        namespace=_namespace(),
        job=f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", ""),
        restart=os.environ.get("SLURM_RESTART_COUNT", "0"),
        meeting=meeting(),
        since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def meeting() -> str:
    """Return the address where the ranks of this start meet, as their launcher set it."""
    return ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")).strip(":")


def may_live(other: Holder, own: Holder) -> bool:
    """Tell whether a process may still be alive, as far as the asking process can know."""
    if other.is_over or other.is_earlier_start_of(own):
        return False
    if not other.is_on_machine_of(own):
        return True
    return started_at(other.process) == other.started


def started_at(process: int) -> str:
    """Return the start of a process of this machine, in ticks; empty if there is none."""
    stat = _text(Path(f"/proc/{process}/stat"))
    # After the name, which may hold spaces and brackets; the state comes first.
    after = stat.rpartition(")")[2].split()
    return after[19] if len(after) > 19 and after[0] not in "ZX" else ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def is_only_here(folder: Path) -> bool:
    """Tell whether a folder's file system is mounted so that locks stay on this node."""
    kind, options = "", set[str]()
    longest = -1
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4].encode().decode("unicode_escape")
        if len(place) >= longest and folder.resolve().is_relative_to(place):
            longest = len(place)
            kind = after.split()[0]
            options = set(",".join([before.split()[5], *after.split()[2:]]).split(","))
    return bool(options & _ONLY_HERE) or kind.startswith(_OF_ONE_NODE)
