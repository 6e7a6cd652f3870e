"""Ask a node for what needs no GPU: versions, shared memory, disks, its clock."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from tst_megatron import __version__
from tst_megatron.system.files import beside
from tst_megatron.system.packages import package_version

SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY_GIB = 1.0
"""NCCL and the workers of data loaders pass through it. Containers start with 64 MiB."""

MIN_FREE_GIB = 1.0
"""Of a disk that logs and small files go to; a checkpoint needs more."""

PROBE_BYTES = 2**20

MOST_SKEW_SECONDS = 5.0
"""Far more than reading the clocks in turn takes, and far less than a node without NTP drifts."""

DRIVER = Path("/sys/module/nvidia/version")


def host_name() -> str:
    """Return this node's name, as Slurm spells it if Slurm started this process."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def versions() -> dict[str, str]:
    """Return versions that must be the same on all nodes, without importing the packages."""
    found = {"python": platform.python_version(), "tst_megatron": __version__}
    for package in ("torch", "megatron-core", "transformer-engine"):
        found[package] = package_version(package) or "none"
    found["driver"] = driver_version() or "none"
    return found


def driver_version() -> str | None:
    """Return the version of NVIDIA's kernel module; None if it is not loaded."""
    try:
        return DRIVER.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def free_gib(folder: Path) -> float:
    """Return the free space of the file system that a folder is in, in GiB."""
    return shutil.disk_usage(folder).free / 2**30


def space_problems(name: str, free: float, needed: float) -> list[str]:
    """Check that a file system has room; both numbers are in GiB."""
    if free >= needed:
        return []
    return [f"{name}: {free:.1f} GiB free, {needed:g} are needed"]


def probe_seconds(folder: Path) -> float:
    """Measure how long it takes to write a small file to disk, read it back and remove it.

    Raises:
        OSError: the disk failed, or gave back something else.
    """
    path = beside(folder / "probe")
    content = os.urandom(PROBE_BYTES)
    start = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != content:
            raise OSError(f"{path}: {PROBE_BYTES} bytes were read back with another content")
    finally:
        path.unlink(missing_ok=True)
    return time.perf_counter() - start


def clock_problems(times: Sequence[float], rank: int) -> list[str]:
    """Check that a rank's clock agrees with the others.

    It is compared with the clock that most ranks agree with, or with rank 0's if there is none. If
    it were always rank 0's, a wrong clock there would make every other node look wrong.

    Args:
        times: the clocks of all ranks at one moment, in seconds, by rank.
        rank: the one whose clock is checked.
    """

    def num_agreeing(time_: float) -> int:
        return sum(abs(time_ - other) <= MOST_SKEW_SECONDS for other in times)

    skew = times[rank] - max(times, key=num_agreeing)
    if abs(skew) <= MOST_SKEW_SECONDS:
        return []
    side = "ahead of" if skew > 0 else "behind"
    return [f"clock: {abs(skew):.1f} s {side} the other nodes. Look at its time service"]
