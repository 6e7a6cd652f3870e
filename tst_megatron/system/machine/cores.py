"""Count the processor cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT = 1e9


def num_cores() -> int:
    """Return the cores that this process may run on, at least 1.

    The machine may have many more: a job's processes are bound to some of them, and a container
    has a share of their time.
    """
    # macOS has no such call, and None stands for an unknown number.
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(here or 1, math.ceil(_share_of_container())))


def _share_of_container() -> float:
    """Return the container's share of time in cores, by version 2 of cgroups or version 1."""
    both = _words(CGROUPS / "cpu.max")
    if not both:
        both = [
            *_words(CGROUPS / "cpu/cpu.cfs_quota_us"),
            *_words(CGROUPS / "cpu/cpu.cfs_period_us"),
        ]
    try:
        quota, period = map(float, both)
        return quota / period if quota > 0 and period > 0 else NO_LIMIT
    except ValueError:
        # There is no limit ("max"), or nothing says one.
        return NO_LIMIT


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []
