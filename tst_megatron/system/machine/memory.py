"""Measure the memory that this process may still take, and the most that it has taken."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil

# Limit and use of the group of processes that a container or a batch job puts this one into, for
# the two versions of control groups.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def available_bytes() -> int:
    """Return the free memory of the machine, or of this container or batch job if that is less."""
    free = [int(psutil.virtual_memory().available)]
    for limit, used in _GROUPS:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            # No such group, or "max": no limit.
            continue
    # Of a group, what it has used includes what it can give back, so this errs on the safe side.
    return max(0, min(free))


def peak_resident_bytes() -> int:
    """Return the most memory that this process has had in RAM at once."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        # A process begins with its parent's number here.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
