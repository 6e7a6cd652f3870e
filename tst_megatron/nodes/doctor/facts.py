"""Define the facts about a machine and its software, from which findings are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tst_megatron.system.machine.nvidia_smi import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """One installed copy of a distribution, in one folder of Python's path."""

    version: str | None
    """None where its metadata are damaged."""
    folder: str
    """The folder on Python's path; of an editable installation, the folder of its source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """Packages that an image was built with."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Version of each distribution."""
    has_apex: bool | None = None
    """True if NVIDIA's Apex was built into it; None where the image does not say."""
    replaced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By distribution that its build installed before the base image's copy: both versions."""
    problem: str | None = None
    """Reason why its file cannot be read."""


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
    """Requirements of each distribution's used copy, by its own metadata."""
    damaged: tuple[str, ...] = ()
    """Metadata that cannot be read, each with the reason."""
    executable: str = "python"
    """The interpreter of this environment."""
    user_site: str | None = None
    """The user's own folder of packages, if it exists and Python looks into it."""
    image: Image | None = None

    def version(self, distribution: str) -> str | None:
        """The version of the copy that is used; None where there is none."""
        copies = self.copies.get(distribution)
        return copies[0].version if copies else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Answers of a process of its own that imported something."""

    answers: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Reason why it has no answers: an error in one line, a crash, a hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPUs:
    """The driver and its GPUs, without torch."""

    driver: str | None = None
    """Version of the kernel module; None where it is not loaded."""
    health: Answer = field(default_factory=Answer)
    """To ``nvidia_smi.FIELDS``."""

    @property
    def are_there(self) -> bool:
        """Tell whether this machine has GPUs, whether or not this process can see them."""
        return self.driver is not None or bool(self.health.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """A file system that a run writes to."""

    name: str
    path: str
    is_of_compilers: bool = False
    """True if only Triton and torch.compile write there; the CPU host uses neither."""
    free_gib: float | None = None
    problem: str | None = None
    """Reason why it could not be written to."""


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
    """True if this process may lock memory beyond its limit (CAP_IPC_LOCK)."""
    infiniband: tuple[str, ...]
    """Names of its adapters."""
    interfaces: tuple[str, ...]
    """Names of network interfaces."""
    compiler: str | None
    """The C compiler that Triton takes."""
    has_python_headers: bool
    """True if Python.h exists, against which Triton compiles."""
    user: str | None
    """Name of the user; None where there is none for this number."""
    is_clock_synchronised: bool | None
    """The kernel's answer; None where it gives none."""
    now: float
    """Seconds since 1970, as the clock says."""
    written: float
    """Seconds since 1970 at which this project's newest file was written."""
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All facts that findings are made from."""

    packages: Packages
    probes: Mapping[str, Probe]
    """Answers by the names in ``probe.py``; absent where the package is absent."""
    gpus: GPUs
    machine: Machine
