"""What is known of a machine and its software before anybody judges it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tst_megatron.system.machine.nvidia_smi import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A distribution as one folder of Python's path has it."""

    version: str | None
    """None where its metadata are damaged."""
    folder: str
    """The folder on Python's path; of an editable installation, the folder of its source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """What an image was built with."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """By distribution."""
    has_apex: bool | None = None
    """Whether NVIDIA's Apex was built into it; None where it does not say."""
    replaced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Versions, that of the base image and its own, of what it has over the base's copy."""
    problem: str | None = None
    """Why its file cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packages:
    """Python and its packages, as their metadata say without importing any."""

    python: str
    requires_python: str
    required: Mapping[str, tuple[str, ...]]
    """Requirements of each extra by its name; under "" those of every installation."""
    copies: Mapping[str, tuple[Copy, ...]]
    """Every copy of a distribution by its normalised name; the first one is used."""
    requires: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the copy of a distribution that is used requires itself."""
    damaged: tuple[str, ...] = ()
    """Which metadata cannot be read, and why."""
    executable: str = "python"
    """The interpreter of this environment."""
    user_site: str | None = None
    """The user's own folder of packages, where Python looks into it and it is there."""
    image: Image | None = None

    def version(self, distribution: str) -> str | None:
        """The version of the copy that is used; None where there is none."""
        copies = self.copies.get(distribution)
        return copies[0].version if copies else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a process of its own saw when it imported something."""

    answers: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why it has no answers: an error in one line, a crash, a hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPUs:
    """The driver and its GPUs, without torch."""

    driver: str | None = None
    """Version of the kernel module; None where it is not loaded."""
    health: Answer = field(default_factory=Answer)
    """To ``nvidia_smi.FIELDS``."""

    @property
    def are_there(self) -> bool:
        """Whether this machine has GPUs, whatever this process can see of them."""
        return self.driver is not None or bool(self.health.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """A file system that a run writes to."""

    name: str
    path: str
    is_of_compilers: bool = False
    """Whether only Triton and torch.compile write there, which the CPU host does without."""
    free_gib: float | None = None
    problem: str | None = None
    """Why it could not be written to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Memory, limits, disks, clock, network and environment of this process."""

    shared_memory: Disk
    disks: tuple[Disk, ...]
    limits: Mapping[str, tuple[int, int]]
    """(soft, hard) by the name that ``ulimit`` has in ``limits.py``; -1 is unlimited."""
    most_tasks_of_container: int | None
    """Processes and threads that the control group allows; None is no limit."""
    may_lock_memory: bool
    """Whether this process may lock memory beyond its limit (CAP_IPC_LOCK)."""
    infiniband: tuple[str, ...]
    """Names of its adapters."""
    interfaces: tuple[str, ...]
    """Names of network interfaces."""
    compiler: str | None
    """The C compiler that Triton takes."""
    has_python_headers: bool
    """Whether Python.h is there, against which Triton compiles."""
    user: str | None
    """Name of the user; None where there is none for this number."""
    is_clock_synchronised: bool | None
    """As the kernel says; None where it does not."""
    now: float
    """Seconds since 1970, as the clock says."""
    written: float
    """Seconds since 1970 at which this project's newest file was written."""
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that findings are made of."""

    packages: Packages
    probes: Mapping[str, Probe]
    """By the names in ``probe.py``. One is missing where its package is."""
    gpus: GPUs
    machine: Machine
